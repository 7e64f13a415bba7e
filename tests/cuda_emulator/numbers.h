// The conversions of the hardware, bit for bit: round to nearest, ties to even (TF32: away from
// zero); what is too large becomes infinity; every NaN becomes the one that the hardware writes.
#pragma once

#include <stdint.h>
#include <string.h>

namespace fastrnn::emulator {

inline float float_of_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t bits_of_float(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}
inline bool is_nan(uint32_t bits) { return (bits & 0x7fffffff) > 0x7f800000; }

// Drops the low `count` bits, rounding to nearest, ties to even.
inline uint32_t drop_bits(uint32_t value, int count) {
  const uint32_t half = 1u << (count - 1);
  return (value + (half - 1) + (value >> count & 1)) >> count;
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31,
                 mantissa = half & 0x3ff;
  if (exponent == 31) return float_of_bits(mantissa ? 0x7fffffff : sign | 0x7f800000);
  if (exponent == 0) {  // mantissa * 2^-24, exact in float
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline uint16_t half_of_float(float f) {
  const uint32_t bits = bits_of_float(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (is_nan(bits)) return 0x7fff;
  if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);  // from 2^16 on
  if (magnitude >= 0x38800000)  // from 2^-14 on: normal; a carry out of the mantissa is right
    return uint16_t(sign | drop_bits(magnitude - (112u << 23), 13));
  const int shift = 126 - int(magnitude >> 23);  // to units of 2^-24
  if (shift > 24) return uint16_t(sign);         // below 2^-25
  return uint16_t(sign | drop_bits((magnitude & 0x7fffff) | 0x800000, shift));
}

inline uint16_t bfloat16_of_float(float f) {
  const uint32_t bits = bits_of_float(f);
  return is_nan(bits) ? 0x7fff : uint16_t(drop_bits(bits, 16));
}

inline float tf32_of_float(float f) {
  const uint32_t bits = bits_of_float(f);
  if (is_nan(bits)) return float_of_bits(0x7fffffff);
  if ((bits & 0x7fffffff) == 0x7f800000) return f;
  return float_of_bits((bits + 0x1000) & ~0x1fffu);
}

}  // namespace fastrnn::emulator
