// The kernels of one target: included by isa_*.cpp with FASTRNN_TARGET and FASTRNN_VECTOR_BYTES
// set and with the types that the target has kernels of its own for, compiled with its flags.
#include "backward.h"
#include "kernels.h"
#include "stack.h"

FASTRNN_NAMESPACE_BEGIN

template <class Cell, class T>
constexpr CellKernels<T> cell_kernels() {
  return {Cell::kSaved, Cell::kCellState, forward_stack<Cell, T>, backward<Cell, T>,
          pack_weights<Cell, T>};
}

struct Exp {
  template <class V>
  static FASTRNN_FN V value(V x) {
    return exp(x);
  }
};

template <class Function, class T>
void elementwise(const T* in, T* out, int64_t count) {
  constexpr int kWidth = Pack<T>::kWidth;
  for (int64_t i = 0; i < count; i += kWidth) {
    const int n = int(count - i < kWidth ? count - i : kWidth);
    Function::value(Pack<T>::load(in + i, n)).store(out + i, n);
  }
}

template <class T>
constexpr Kernels<T> kernels() {
  Kernels<T> table = {{
      cell_kernels<Vanilla<Tanh>, T>(),
      cell_kernels<Vanilla<Relu>, T>(),
      cell_kernels<Vanilla<Sigmoid>, T>(),
      cell_kernels<Vanilla<Identity>, T>(),
      cell_kernels<Lstm, T>(),
      cell_kernels<Gru, T>(),
      cell_kernels<GruResetBefore, T>(),
  }};
  if constexpr (!kNarrow<T>) {
    table.exp = elementwise<Exp, T>;
    table.sigmoid = elementwise<Sigmoid, T>;
    table.tanh = elementwise<Tanh, T>;
  }
  return table;
}

// The tables of this target; dispatch.cpp declares them again.
#if defined(FASTRNN_WIDE_TYPES)
extern constexpr Kernels<float> f32 = kernels<float>();
extern constexpr Kernels<double> f64 = kernels<double>();
#endif
#if defined(FASTRNN_BFLOAT16)
extern constexpr Kernels<bfloat16> bf16 = kernels<bfloat16>();
#endif
#if defined(FASTRNN_FLOAT16)
extern constexpr Kernels<float16> f16 = kernels<float16>();
#endif

FASTRNN_NAMESPACE_END
