// The kernels of one target: included by isa_*.cpp with FASTRNN_TARGET, FASTRNN_VECTOR_BYTES and
// TARGET_TABLE set, compiled with that target's flags.
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
  return {
      {
          cell_kernels<Vanilla<Tanh>, T>(),
          cell_kernels<Vanilla<Relu>, T>(),
          cell_kernels<Vanilla<Sigmoid>, T>(),
          cell_kernels<Vanilla<Identity>, T>(),
          cell_kernels<Lstm, T>(),
          cell_kernels<Gru, T>(),
          cell_kernels<GruResetBefore, T>(),
      },
      elementwise<Exp, T>,
      elementwise<Sigmoid, T>,
      elementwise<Tanh, T>,
  };
}

FASTRNN_NAMESPACE_END

namespace fastrnn {
extern constexpr Target TARGET_TABLE = {
#define FASTRNN_STRING_(x) #x
#define FASTRNN_STRING(x) FASTRNN_STRING_(x)
    FASTRNN_STRING(FASTRNN_TARGET), kernels<float>(), kernels<double>()};
}  // namespace fastrnn
