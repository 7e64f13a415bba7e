// What differs between the compilers that read this folder: the host compiler once per CPU
// target, nvcc, and NVRTC.
//
// Everything lives in an inline namespace named after the target. The same template compiled for
// two CPU targets would otherwise be one symbol, of which the linker keeps any copy: an AVX-512
// body would run on a machine without AVX-512. For the same reason nothing here includes the C++
// standard library.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_FN __host__ __device__ __forceinline__
#define FASTRNN_TARGET cuda
#else
#define FASTRNN_FN inline __attribute__((always_inline))
#ifndef FASTRNN_TARGET
#define FASTRNN_TARGET baseline
#endif
#endif

// What a call does once: inlined, or cloned for one of its callers, it would be compiled again for
// each.
#if defined(__clang__)
#define FASTRNN_ONCE __attribute__((noinline))
#else
#define FASTRNN_ONCE __attribute__((noinline, noclone))
#endif

#define FASTRNN_NAMESPACE_BEGIN \
  namespace fastrnn {           \
  inline namespace FASTRNN_TARGET {
#define FASTRNN_NAMESPACE_END \
  }                           \
  }

#if defined(__CUDACC_RTC__)
FASTRNN_NAMESPACE_BEGIN
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
FASTRNN_NAMESPACE_END
#else
#include <stdint.h>
#endif
