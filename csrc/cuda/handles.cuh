// Kernels as the host's side gets hold of them: their addresses, where they are compiled with it;
// where launches are recorded (../launches/recorder.h), their names as NVRTC takes them.
#pragma once

#include "backward.cuh"
#include "forward.cuh"
#include "prepare.cuh"
#include "sequence.cuh"
#include "tiled.cuh"

#if defined(FASTRNN_CUDA_RECORDER)
#include "../launches/type_names.h"
#endif

#if !defined(__CUDACC_RTC__)

FASTRNN_NAMESPACE_BEGIN

// FASTRNN_HANDLE(name, arguments, kernel)
#if defined(FASTRNN_CUDA_RECORDER)
#define FASTRNN_HANDLE(name, Args, ...) \
  KernelOf<Args> {                      \
    [] { return name; }, sizeof(Args)   \
  }
#else
template <class Args>
using KernelOf = void (*)(Args);
#define FASTRNN_HANDLE(name, Args, ...) __VA_ARGS__
#endif

inline KernelOf<UploadArgs> upload_kernel() {
  return FASTRNN_HANDLE(std::string("upload"), UploadArgs, upload);
}

inline KernelOf<DenseRowsArgs> dense_rows_kernel() {
  return FASTRNN_HANDLE(std::string("dense_rows"), DenseRowsArgs, dense_rows);
}

template <class Math>
KernelOf<StartArgs<Math>> prepare_forward_kernel() {
  return FASTRNN_HANDLE(instance("prepare_forward", type_name<Math>()), StartArgs<Math>,
                        prepare_forward<Math>);
}

template <class Cell, class Math, bool kProjected>
KernelOf<RestoreArgs<Math>> prepare_backward_kernel() {
  return FASTRNN_HANDLE(
      instance("prepare_backward", type_name<Cell>(), type_name<Math>(), text(kProjected)),
      RestoreArgs<Math>, prepare_backward<Cell, Math, kProjected>);
}

template <class Cell, class Math>
KernelOf<RestoreArgs<Math>> finish_restoring_kernel() {
  return FASTRNN_HANDLE(instance("finish_restoring", type_name<Cell>(), type_name<Math>()),
                        RestoreArgs<Math>, finish_restoring<Cell, Math>);
}

template <class Math>
KernelOf<FinishArgs<Math>> finish_kernel() {
  return FASTRNN_HANDLE(instance("finish", type_name<Math>()), FinishArgs<Math>, finish<Math>);
}

template <class Pass, class Shape, class Exchanging>
KernelOf<typename Pass::Args> sequence_kernel() {
  return FASTRNN_HANDLE(
      instance("run_sequence", type_name<Pass>(), type_name<Shape>(), type_name<Exchanging>()),
      typename Pass::Args, run_sequence<Pass, Shape, Exchanging>);
}

template <class Pass>
KernelOf<typename Pass::Args> tiled_kernel() {
  return FASTRNN_HANDLE(instance("run_tiled", type_name<Pass>()), typename Pass::Args,
                        run_tiled<Pass>);
}

#undef FASTRNN_HANDLE

FASTRNN_NAMESPACE_END

#endif  // NVRTC, which compiles what is included above
