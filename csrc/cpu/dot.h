// Products with a row-major matrix as it lies in memory: dot products of its rows with a few
// inputs.
//
// A few rows of the matrix meet M inputs at a time, one register along k each, so that a load feeds
// several multiply-adds; the lanes of a register of rows are then added by a tree of shuffles.
#pragma once

#include "lanes.h"
#include "terms.h"

FASTRNN_NAMESPACE_BEGIN

#if FASTRNN_VECTOR_BYTES == 64
constexpr int kDotInputs = 4;
constexpr int kDotAccumulators = 16;
#else
constexpr int kDotInputs = 2;
constexpr int kDotAccumulators = 8;
#endif

template <class T, int M>
void dot_kernel(const T* const* a, const T* matrix, int64_t row, int valid, int64_t depth,
                const T* bias, Compute<T>* out, int64_t out_row) {
  using V = Pack<Compute<T>>;
  using Term = Terms<T>;
  constexpr int kWidth = V::kWidth, kStep = kWidth * Term::kInputs;
  constexpr int kRows = kDotAccumulators / M;
  constexpr int kN = kRows < kWidth ? kRows : kWidth;
  V sums[M][kWidth];
  const int64_t whole = depth / kStep * kStep;
  const int left = int(depth - whole);
  for (int v = 0; v < kWidth; v += kN) {
    V acc[M][kN];
    const T* w[kN];
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) {
      // Beyond the last row: the last again, for a lane that is not used.
      w[n] = matrix + (v + n < valid ? v + n : valid - 1) * row;
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = zero<V>();
    }
    for (int64_t k = 0; k < whole; k += kStep) {
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) {
        const V weights = Term::along(w[n] + k);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
          acc[m][n] = Term::multiply_add(Term::along(a[m] + k), weights, acc[m][n]);
      }
    }
    if (left) {
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) {
        const V weights = Term::along(w[n] + whole, left);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
          acc[m][n] = Term::multiply_add(Term::along(a[m] + whole, left), weights, acc[m][n]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) sums[m][v + n] = acc[m][n];
  }
  const V start = bias ? V::load(bias, valid) : zero<V>();
  for (int m = 0; m < M; ++m) {
    add_lanes<kWidth, 1>(sums[m]);
    (start + sums[m][0]).store(out + m * out_row, valid);
  }
}

// out[m][v] = bias[v] + sum over k of a[m][k] * matrix[v * row + k], for `valid` rows v, a register
// of them at most. Any number of inputs.
template <class T>
void dot_products(int inputs, const T* const* a, const T* matrix, int64_t row, int valid,
                  int64_t depth, const T* bias, Compute<T>* out, int64_t out_row) {
  int m = 0;
  for (; m + kDotInputs <= inputs; m += kDotInputs)
    dot_kernel<T, kDotInputs>(a + m, matrix, row, valid, depth, bias, out + m * out_row, out_row);
  for (; m < inputs; ++m)
    dot_kernel<T, 1>(a + m, matrix, row, valid, depth, bias, out + m * out_row, out_row);
}

FASTRNN_NAMESPACE_END
