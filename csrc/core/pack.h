// Pack<T>: one SIMD register of T, the value type V of the cells on a CPU.
//
// Written with the vector extensions of GCC and Clang, so one text serves SSE2, AVX2, AVX-512 and
// NEON; FASTRNN_VECTOR_BYTES, set by each target's source file, is the width of a register.
#pragma once

#ifndef FASTRNN_VECTOR_BYTES
#define FASTRNN_VECTOR_BYTES 16
#endif

#include "convert.h"
#include "scalar.h"

FASTRNN_NAMESPACE_BEGIN

// The vector types of each scalar. Loose is the same register without the alignment of one, for
// memory that has only that of a scalar. (Spelt out: the attribute is lost on dependent types.)
#define FASTRNN_VECTOR __attribute__((vector_size(FASTRNN_VECTOR_BYTES)))
#define FASTRNN_LOOSE(T) \
  __attribute__((vector_size(FASTRNN_VECTOR_BYTES), aligned(sizeof(T)), may_alias))
template <class T>
struct VectorTypes;
template <>
struct VectorTypes<float> {
  typedef float Vector FASTRNN_VECTOR;
  typedef int32_t Bits FASTRNN_VECTOR;
  typedef float Loose FASTRNN_LOOSE(float);
};
template <>
struct VectorTypes<double> {
  typedef double Vector FASTRNN_VECTOR;
  typedef int64_t Bits FASTRNN_VECTOR;
  typedef double Loose FASTRNN_LOOSE(double);
};

template <class T>
struct Pack {
  using Vector = typename VectorTypes<T>::Vector;
  using Bits = typename VectorTypes<T>::Bits;
  using Loose = typename VectorTypes<T>::Loose;

  static constexpr int kWidth = FASTRNN_VECTOR_BYTES / sizeof(T);

  Vector v;

  Pack() = default;
  FASTRNN_FN Pack(Vector vector) : v(vector) {}
  // Minus zero, not plus: 0 + -0.0 would lose the sign (and be an addition).
  FASTRNN_FN explicit Pack(T scalar) : v(scalar - Vector{}) {}

  static FASTRNN_FN Pack load(const T* p) { return Pack(Vector(*(const Loose*)p)); }
  FASTRNN_FN void store(T* p) const { *(Loose*)p = v; }

  // The first n of kWidth values; the rest are 0 and are not read.
  static FASTRNN_FN Pack load(const T* p, int n) {
    if (n == kWidth) return load(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return Pack((Vector)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
    if constexpr (sizeof(T) == 8)
      return Pack((Vector)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p));
#else
    Pack result(T(0));
    memcpy(&result.v, p, n * sizeof(T));
    return result;
#endif
  }
  FASTRNN_FN void store(T* p, int n) const {
    if (n == kWidth) {
      store(p);
    } else {
#if defined(__AVX512F__)
      if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
      if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#else
      memcpy(p, &v, n * sizeof(T));
#endif
    }
  }

  // The same for values in memory of a narrower type S, converted. Of Pack<float> only.
  template <class S>
  static FASTRNN_FN Pack load(const S* p, int n = kWidth) {
    return Pack((Vector)widen(load_halves(p, n), S()));
  }
  template <class S>
  FASTRNN_FN void store(S* p, int n = kWidth) const {
    store_halves(p, narrow((Singles)v, S()), n);
  }
};

template <class T>
FASTRNN_FN Pack<T> operator+(Pack<T> a, Pack<T> b) {
  return a.v + b.v;
}
template <class T>
FASTRNN_FN Pack<T> operator-(Pack<T> a, Pack<T> b) {
  return a.v - b.v;
}
template <class T>
FASTRNN_FN Pack<T> operator*(Pack<T> a, Pack<T> b) {
  return a.v * b.v;
}
template <class T>
FASTRNN_FN Pack<T> operator/(Pack<T> a, Pack<T> b) {
  return a.v / b.v;
}

// The smaller and the larger of a and b, or b if one is NaN: x86's instructions, which compilers do
// not find in the comparisons that say the same.
#if defined(__x86_64__)
#if FASTRNN_VECTOR_BYTES == 64
#define FASTRNN_X86(name) _mm512_##name
#elif FASTRNN_VECTOR_BYTES == 32
#define FASTRNN_X86(name) _mm256_##name
#else
#define FASTRNN_X86(name) _mm_##name
#endif
FASTRNN_FN Pack<float> smaller(Pack<float> a, Pack<float> b) {
  return FASTRNN_X86(min_ps)(a.v, b.v);
}
FASTRNN_FN Pack<double> smaller(Pack<double> a, Pack<double> b) {
  return FASTRNN_X86(min_pd)(a.v, b.v);
}
FASTRNN_FN Pack<float> larger(Pack<float> a, Pack<float> b) {
  return FASTRNN_X86(max_ps)(a.v, b.v);
}
FASTRNN_FN Pack<double> larger(Pack<double> a, Pack<double> b) {
  return FASTRNN_X86(max_pd)(a.v, b.v);
}
#undef FASTRNN_X86
#else
template <class T>
FASTRNN_FN Pack<T> smaller(Pack<T> a, Pack<T> b) {
  return a.v < b.v ? a.v : b.v;
}
template <class T>
FASTRNN_FN Pack<T> larger(Pack<T> a, Pack<T> b) {
  return a.v > b.v ? a.v : b.v;
}
#endif

// What the activations need, as in scalar.h.
template <class T>
FASTRNN_FN Pack<T> fma(Pack<T> a, Pack<T> b, Pack<T> c) {
  return a.v * b.v + c.v;  // contracted to one instruction where the target has it
}
template <class T>
FASTRNN_FN Pack<T> clamp_above(Pack<T> a, T bound) {
  return smaller(Pack<T>(bound), a);
}
template <class T>
FASTRNN_FN Pack<T> clamp_below(Pack<T> a, T bound) {
  return larger(Pack<T>(bound), a);
}
template <class T>
FASTRNN_FN Pack<T> zero_unless_positive(Pack<T> condition, Pack<T> a) {
  return condition.v <= Pack<T>(T(0)).v ? Pack<T>(T(0)).v : a.v;
}
// relu as torch's: NaN stays NaN.
template <class T>
FASTRNN_FN Pack<T> positive_part(Pack<T> a) {
  return clamp_below(a, T(0));
}
template <class T>
FASTRNN_FN Pack<T> magnitude(Pack<T> a) {
  using Bits = typename Pack<T>::Bits;
  const Bits sign = (Bits)Pack<T>(T(-0.0)).v;
  return Pack<T>((typename Pack<T>::Vector)((Bits)a.v & ~sign));
}
template <class T>
FASTRNN_FN Pack<T> with_sign_of(Pack<T> a, Pack<T> sign_source) {
  using Bits = typename Pack<T>::Bits;
  const Bits sign = (Bits)Pack<T>(T(-0.0)).v;
  return Pack<T>((typename Pack<T>::Vector)(((Bits)a.v & ~sign) | ((Bits)sign_source.v & sign)));
}
// 2^n, where the low bits of `shifted` hold n plus the exponent's bias: Float's kShift does that.
template <class T>
FASTRNN_FN Pack<T> power_of_two(Pack<T> shifted, int mantissa_bits) {
  using Bits = typename Pack<T>::Bits;
  return Pack<T>((typename Pack<T>::Vector)((Bits)shifted.v << mantissa_bits));
}

template <class T>
struct ScalarOf<Pack<T>> {
  using type = T;
};

FASTRNN_NAMESPACE_END
