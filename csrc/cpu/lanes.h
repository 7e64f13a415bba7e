// Movement of values across the lanes of registers.
#pragma once

#include "../core/pack.h"

FASTRNN_NAMESPACE_BEGIN

// Lanes of a and b, as one row of twice the width, picked by index.
template <class T>
FASTRNN_FN Pack<T> pick(Pack<T> a, Pack<T> b, typename Pack<T>::Bits index) {
#if defined(__clang__)
  constexpr int kWidth = Pack<T>::kWidth;
  typename Pack<T>::Vector result;
  for (int i = 0; i < kWidth; ++i)
    result[i] = index[i] < kWidth ? a.v[index[i]] : b.v[index[i] - kWidth];
  return result;
#else
  return __builtin_shuffle(a.v, b.v, index);
#endif
}

// One level of the tree: of each group of 2 * Span lanes, the first Span lanes of the result are
// sums of a, the others sums of b.
template <int Span, class T>
FASTRNN_FN Pack<T> add_pairs(Pack<T> a, Pack<T> b) {
  constexpr int kWidth = Pack<T>::kWidth;
  typename Pack<T>::Bits low, high;
  for (int i = 0; i < kWidth; ++i) {
    const int group = i / (2 * Span) * (2 * Span), lane = i % (2 * Span);
    low[i] = lane < Span ? group + lane : kWidth + group + lane - Span;
    high[i] = low[i] + Span;
  }
  return pick(a, b, low) + pick(a, b, high);
}

// Lane i of the result is the sum of the lanes of sums[i]; sums has Count registers.
template <int Count, int Span, class T>
FASTRNN_FN void add_lanes(Pack<T>* sums) {
  if constexpr (Count > 1) {
    for (int i = 0; i < Count / 2; ++i) sums[i] = add_pairs<Span>(sums[2 * i], sums[2 * i + 1]);
    add_lanes<Count / 2, 2 * Span>(sums);
  }
}

// One level of a transposition: swaps the blocks of Span lanes and rows off the diagonal.
template <int Span, class T>
FASTRNN_FN void exchange_blocks(Pack<T>& a, Pack<T>& b) {
  constexpr int kWidth = Pack<T>::kWidth;
  typename Pack<T>::Bits upper, lower;
  for (int i = 0; i < kWidth; ++i) {
    upper[i] = i & Span ? kWidth + i - Span : i;
    lower[i] = i & Span ? kWidth + i : i + Span;
  }
  const Pack<T> first = pick(a, b, upper);
  b = pick(a, b, lower);
  a = first;
}

// Transposes a square of kWidth registers in place.
template <int Span, class T>
FASTRNN_FN void transpose(Pack<T>* rows) {
  constexpr int kWidth = Pack<T>::kWidth;
  if constexpr (Span < kWidth) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i)
      if (!(i & Span)) exchange_blocks<Span>(rows[i], rows[i + Span]);
    transpose<2 * Span>(rows);
  }
}

FASTRNN_NAMESPACE_END
