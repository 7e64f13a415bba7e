// The tables of CPU kernels, by target and type.
#pragma once

#include "../core/arguments.h"

namespace fastrnn {

template <class T>
struct CellKernels {
  int saved;  // values kept for backward per unit
  bool has_cell_state;
  // False when there is no memory for the workspace. Forward of a stack of layers, the lowest
  // first, fills in x of all but the first and y of all but the last.
  bool (*forward)(Forward<T>* layers, int count, int threads);
  bool (*backward)(const Backward<T>&, int threads);
  // The bytes of a direction's packed weights, which are written to out (64-byte aligned) unless it
  // is null.
  int64_t (*pack_weights)(const Forward<T>&, int direction, Compute<T>* out);
};

template <class T>
using Elementwise = void (*)(const T* in, T* out, int64_t count);

template <class T>
struct Kernels {
  CellKernels<T> cells[kCellKinds];  // in the order of CellKind
  // Null for types that are storage only.
  Elementwise<T> exp = nullptr, sigmoid = nullptr, tanh = nullptr;
};

// The kernels a processor uses; for some types they are those of a lesser one. None for the 16-bit
// types where conversion would be many instructions.
struct Target {
  const char* name;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  const Kernels<bfloat16>* bf16 = nullptr;
  const Kernels<float16>* f16 = nullptr;
};
constexpr int kTargets = 4;

// Targets that were built and that this processor and its operating system can run, best last.
int usable_targets(const Target** targets);

// The target in use. The first call settles it: see select_target.
const Target& active_target();

// Use the target of that name; null if it was not built or cannot run here.
const Target* select_target(const char* name);

}  // namespace fastrnn
