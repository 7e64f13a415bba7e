// Registers of 16-bit values to and from registers of float, by the target's instructions or by
// integer arithmetic. To 16 bits values round to nearest, ties to even; NaN stays NaN.
//
// The instruction of AVX512-BF16 takes subnormal values for zeros, the others keep them.
#pragma once

#include <string.h>

#include "storage.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

FASTRNN_NAMESPACE_BEGIN

// As many 16-bit values as a register has floats, and the lanes of both as integers.
constexpr int kHalves = FASTRNN_VECTOR_BYTES / 4;
typedef uint16_t Halves __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2)));
typedef uint16_t LooseHalves
    __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef float Singles __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
typedef uint32_t SinglesBits __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));

FASTRNN_FN Halves load_halves(const void* p, int n) {
  if (n == kHalves) return Halves(*(const LooseHalves*)p);
#if defined(__AVX512BW__) && defined(__AVX512VL__) && FASTRNN_VECTOR_BYTES == 64
  return (Halves)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
#else
  Halves result = {};
  memcpy(&result, p, n * sizeof(uint16_t));
  return result;
#endif
}

FASTRNN_FN void store_halves(void* p, Halves values, int n) {
  if (n == kHalves) {
    *(LooseHalves*)p = values;
  } else {
#if defined(__AVX512BW__) && defined(__AVX512VL__) && FASTRNN_VECTOR_BYTES == 64
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)values);
#else
    memcpy(p, &values, n * sizeof(uint16_t));
#endif
  }
}

// 16 bits in lanes of 32, and back. (GCC takes conversions of AVX-512 apart, and warns of the
// undefined operand of those without a mask.)
FASTRNN_FN SinglesBits lanes_of(Halves values) {
#if defined(__AVX512F__) && FASTRNN_VECTOR_BYTES == 64
  return (SinglesBits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)values);
#else
  return __builtin_convertvector(values, SinglesBits);
#endif
}
FASTRNN_FN Halves low_halves(SinglesBits lanes) {
#if defined(__AVX512F__) && FASTRNN_VECTOR_BYTES == 64
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)lanes);
#else
  return __builtin_convertvector(lanes, Halves);
#endif
}

FASTRNN_FN Singles widen(Halves values, bfloat16) { return (Singles)(lanes_of(values) << 16); }

FASTRNN_FN Halves narrow(Singles values, bfloat16) {
#if defined(__AVX512BF16__) && FASTRNN_VECTOR_BYTES == 64
  return (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
  const SinglesBits bits = (SinglesBits)values;
  const SinglesBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const SinglesBits quiet = (bits >> 16) | 0x40;
  return low_halves(values == values ? rounded : quiet);
#endif
}

FASTRNN_FN Singles widen(Halves values, float16) {
#if defined(__AVX512F__) && FASTRNN_VECTOR_BYTES == 64
  return (Singles)_mm512_cvtph_ps((__m256i)values);
#elif defined(__F16C__) && FASTRNN_VECTOR_BYTES == 32
  return (Singles)_mm256_cvtph_ps((__m128i)values);
#else
  const SinglesBits half = lanes_of(values);
  const SinglesBits shifted = (half & 0x7fff) << 13;  // exponent and mantissa where float has them
  const SinglesBits normal = shifted + (112u << 23);
  // Infinity and NaN have the largest exponent of either type; subnormal values are multiples of
  // 2^-24, which a subtraction of 2^-14 leaves behind its exponent.
  const SinglesBits special = shifted + (224u << 23);
  const SinglesBits offset = SinglesBits{} + (113u << 23);
  const SinglesBits small = (SinglesBits)((Singles)(shifted + offset) - (Singles)offset);
  const SinglesBits magnitude = shifted < 0x800000u     ? small
                                : shifted >= 0xf800000u ? special
                                                        : normal;
  return (Singles)(magnitude | (half & 0x8000) << 16);
#endif
}

FASTRNN_FN Halves narrow(Singles values, float16) {
#if defined(__AVX512F__) && FASTRNN_VECTOR_BYTES == 64
  return (Halves)_mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__) && FASTRNN_VECTOR_BYTES == 32
  return (Halves)_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const SinglesBits bits = (SinglesBits)values, sign = bits & 0x80000000u, size = bits ^ sign;
  // Above 2^16 and below 2^-14: infinity or NaN; subnormal, rounded by an addition to 0.5, whose
  // last bit is worth 2^-24. (The carry of a rounding up to 2^16 makes infinity of its own.)
  const SinglesBits half_unit = (size >> 13 & 1) + 0xfff;
  const SinglesBits normal = (size - (112u << 23) + half_unit) >> 13;
  const SinglesBits half = SinglesBits{} + 0x3f000000u;
  const SinglesBits small = (SinglesBits)((Singles)size + (Singles)half) - half;
  const SinglesBits special =
      (size > 0x7f800000u) ? (0x7e00 | (size >> 13 & 0x3ff)) : (SinglesBits{} + 0x7c00);
  const SinglesBits magnitude = size < (113u << 23)    ? small
                                : size >= (143u << 23) ? special
                                                       : normal;
  return low_halves(magnitude | sign >> 16);
#endif
}

FASTRNN_NAMESPACE_END
