// What the activations need of a value type V beside its arithmetic, and its form for a plain float
// or double: the value type of the cells in a CUDA thread. pack.h has the form for SIMD registers.
#pragma once

#include "platform.h"

#if !defined(__CUDACC_RTC__)
#include <string.h>
#endif

// A function of the C library, without its header: see platform.h.
#if defined(__CUDACC__)
#define FASTRNN_MATH(name) ::name
#else
#define FASTRNN_MATH(name) __builtin_##name
#endif

FASTRNN_NAMESPACE_BEGIN

template <class V>
struct ScalarOf {
  using type = V;
};

template <class V>
FASTRNN_FN V zero() {
  return V(typename ScalarOf<V>::type(0));
}
template <class V>
FASTRNN_FN V one() {
  return V(typename ScalarOf<V>::type(1));
}

template <class V>
FASTRNN_FN V reciprocal(V a) {
  return one<V>() / a;
}
template <class V>
FASTRNN_FN V quotient(V a, V b) {
  return a / b;
}
#if defined(__CUDA_ARCH__)
// For a >= 1, and for b from 2 to 2^60. A division proper branches for operands that do not occur
// here, so that what a thread divides one after the other cannot overlap. Within 1 ULP both; a
// reciprocal that would be subnormal is 0.
FASTRNN_FN float reciprocal(float a) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
FASTRNN_FN float quotient(float a, float b) {
  const float r = reciprocal(b), q = a * r;
  return ::fmaf(::fmaf(-q, b, a), r, q);
}
#endif

FASTRNN_FN float fma(float a, float b, float c) { return FASTRNN_MATH(fmaf)(a, b, c); }
FASTRNN_FN double fma(double a, double b, double c) { return FASTRNN_MATH(fma)(a, b, c); }
FASTRNN_FN float magnitude(float a) { return FASTRNN_MATH(fabsf)(a); }
FASTRNN_FN double magnitude(double a) { return FASTRNN_MATH(fabs)(a); }
FASTRNN_FN float with_sign_of(float a, float sign_source) {
  return FASTRNN_MATH(copysignf)(a, sign_source);
}
FASTRNN_FN double with_sign_of(double a, double sign_source) {
  return FASTRNN_MATH(copysign)(a, sign_source);
}

// The clamps let NaN through.
FASTRNN_FN float clamp_above(float a, float bound) { return a > bound ? bound : a; }
FASTRNN_FN double clamp_above(double a, double bound) { return a > bound ? bound : a; }
FASTRNN_FN float clamp_below(float a, float bound) { return a < bound ? bound : a; }
FASTRNN_FN double clamp_below(double a, double bound) { return a < bound ? bound : a; }

FASTRNN_FN float zero_unless_positive(float condition, float a) { return condition <= 0 ? 0 : a; }
FASTRNN_FN double zero_unless_positive(double condition, double a) {
  return condition <= 0 ? 0 : a;
}
// relu as torch's: NaN stays NaN.
FASTRNN_FN float positive_part(float a) { return clamp_below(a, 0); }
FASTRNN_FN double positive_part(double a) { return clamp_below(a, 0); }

// 2^n, where the low bits of `shifted` hold n plus the exponent's bias: Float's kShift does that.
FASTRNN_FN float power_of_two(float shifted, int mantissa_bits) {
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits <<= mantissa_bits;
  memcpy(&shifted, &bits, sizeof(bits));
  return shifted;
}
FASTRNN_FN double power_of_two(double shifted, int mantissa_bits) {
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits <<= mantissa_bits;
  memcpy(&shifted, &bits, sizeof(bits));
  return shifted;
}

#undef FASTRNN_MATH

FASTRNN_NAMESPACE_END
