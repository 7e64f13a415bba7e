// exp, tanh and sigmoid over a value type V, branch-free and without tables.
//
// Accuracy, measured against correctly rounded values over the stated range (tests/test_kernels.py
// sweeps it on every target). NaN gives NaN everywhere.
//   exp      float: 2 ULP on [-87.3, 88.3]; double: 2 ULP on [-708, 709].
//            Above it grows to infinity, below it is 0.
//   sigmoid  4 ULP where exp(-x) is in its range; 0 and 1 beyond. On a GPU also 0 where float would
//            be subnormal.
//   tanh     4 ULP everywhere.
#pragma once

#include "scalar.h"

FASTRNN_NAMESPACE_BEGIN

template <class T>
struct Float;

template <>
struct Float<float> {
  static constexpr int kMantissaBits = 23;
  // Adding it puts round(x), plus the exponent bias 127, into the low bits of the sum.
  static constexpr float kShift = 12582912.0f + 127.0f;
  static constexpr float kLowest = -88.0f, kHighest = 89.0f;  // 2^n is 0 and infinity there
  static constexpr float kTanhOne = 9.02f;                    // tanh rounds to 1 from here
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct Float<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr double kShift = 6755399441055744.0 + 1023.0;
  static constexpr double kLowest = -708.8, kHighest = 710.0;
  static constexpr double kTanhOne = 19.1;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 1.9082149292705877e-10;
};

// (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2, minimax fits; error relative to r 1.6e-8 and 5e-19.
template <class V>
FASTRNN_FN V exp_tail(V r, float) {
  V p = V(1.3946489198e-3f);
  p = fma(p, r, V(8.3666061983e-3f));
  p = fma(p, r, V(4.1666280478e-2f));
  p = fma(p, r, V(1.6666543484e-1f));
  return fma(p, r, V(0.5f));
}
template <class V>
FASTRNN_FN V exp_tail(V r, double) {
  V p = V(0x1.1f731ea5352cap-29);
  p = fma(p, r, V(0x1.af4e196027428p-26));
  p = fma(p, r, V(0x1.27e4db57442fbp-22));
  p = fma(p, r, V(0x1.71de021a90822p-19));
  p = fma(p, r, V(0x1.a01a01a6dcaffp-16));
  p = fma(p, r, V(0x1.a01a01abef415p-13));
  p = fma(p, r, V(0x1.6c16c16c162ccp-10));
  p = fma(p, r, V(0x1.11111111100cep-7));
  p = fma(p, r, V(0x1.5555555555556p-5));
  p = fma(p, r, V(0x1.5555555555557p-3));
  return fma(p, r, V(0.5));
}

// exp(x) = scale * (1 + tail) with scale = 2^round(x / ln 2); x within Float's bounds.
template <class V>
FASTRNN_FN void exp_parts(V x, V& scale, V& tail) {
  using T = typename ScalarOf<V>::type;
  using F = Float<T>;
  const V shifted = fma(x, V(F::kLog2e), V(F::kShift));
  const V n = shifted - V(F::kShift);
  V r = fma(n, V(-F::kLn2High), x);
  r = fma(n, V(-F::kLn2Low), r);
  scale = power_of_two(shifted, F::kMantissaBits);
  tail = fma(r * r, exp_tail(r, T(0)), r);
}

template <class V>
FASTRNN_FN V exp(V x) {
  using F = Float<typename ScalarOf<V>::type>;
  V scale, tail;
  exp_parts(clamp_above(clamp_below(x, F::kLowest), F::kHighest), scale, tail);
  return scale * (one<V>() + tail);
}

template <class V>
FASTRNN_FN V sigmoid(V x) {
  return reciprocal(one<V>() + exp(zero<V>() - x));
}

// tanh|x| = m / (m + 2) with m = exp(2|x|) - 1, which keeps its relative accuracy near 0.
template <class V>
FASTRNN_FN V tanh(V x) {
  using T = typename ScalarOf<V>::type;
  using F = Float<T>;
  const V a = clamp_above(magnitude(x), F::kTanhOne);
  V scale, tail;
  exp_parts(a + a, scale, tail);
  const V m = fma(scale, tail, scale - one<V>());
  return with_sign_of(quotient(m, m + V(T(2))), x);
}

FASTRNN_NAMESPACE_END
