// The kernels in use, for the two ways of calling them.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <string>

#include "../cpu/kernels.h"
#include "tensors.h"

namespace fastrnn {

// Null where the target in use has none for the type.
template <class T>
const Kernels<T>* kernels();
template <>
inline const Kernels<float>* kernels<float>() {
  return active_target().f32;
}
template <>
inline const Kernels<double>* kernels<double>() {
  return active_target().f64;
}
template <>
inline const Kernels<bfloat16>* kernels<bfloat16>() {
  return active_target().bf16;
}
template <>
inline const Kernels<float16>* kernels<float16>() {
  return active_target().f16;
}

// function(T()), T being the type of a tensor's values: one of the four that problems have here.
template <class Function>
auto with_type_of(const View& view, const Function& function) {
  if (view.dtype.bits == 32) return function(float());
  if (view.dtype.bits == 64) return function(double());
  if (view.dtype.code == dlpack::kBfloat) return function(bfloat16());
  return function(float16());
}

// Whether the target in use has kernels for the 16-bit types: for both or for neither.
inline bool serves_16_bits() { return active_target().bf16 != nullptr; }

// A module of an older build may lack a cell that the Python package has.
template <class T>
const CellKernels<T>& kernels_of(int cell) {
  if (cell < 0 || cell >= kCellKinds)
    throw pybind11::index_error("cell: expected 0 to " + std::to_string(kCellKinds - 1) + ", got " +
                                std::to_string(cell) + "; is the extension of this version?");
  const Kernels<T>* table = kernels<T>();
  if (!table)
    throw pybind11::type_error(std::string("fastrnn: no kernels of this dtype for ") +
                               active_target().name);
  return table->cells[cell];
}

inline void check_memory(bool done, const char* name) {
  if (done) return;
  PyErr_Format(PyExc_MemoryError, "fastrnn: no memory for the workspace of %s", name);
  throw pybind11::error_already_set();
}

// libgomp's threads do not survive a fork, and a parallel region of the child would wait for them
// for ever: forked children compute on one thread.
inline std::atomic<bool> forked{false};

inline int usable_threads(int threads) {
  return forked.load(std::memory_order_relaxed) ? 1 : threads;
}

}  // namespace fastrnn
