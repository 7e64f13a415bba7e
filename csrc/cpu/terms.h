// What the products multiply: the inputs of a term, and one step of a sum.
//
// A term of a sum over k is one product, or, where the target can, a pair of neighbours: two
// bfloat16 beside each other in the 32 bits of a float's lane. Types that cannot be multiplied as
// they are in memory are converted to their arithmetic first.
#pragma once

#include "../core/pack.h"

FASTRNN_NAMESPACE_BEGIN

// Terms of T. A slot is what a register of weights has in a lane, always as large as an
// accumulator's.
template <class T>
struct Terms {
  using V = Pack<Compute<T>>;
  static constexpr int kInputs = 1;               // values of k in a slot
  static constexpr bool kConverted = kNarrow<T>;  // inputs of a tile are converted first

  // The slot of input k for all lanes.
  static FASTRNN_FN V spread(const T* row, int64_t k) { return V(row[k]); }
  // kWidth * kInputs values of k, or the first n of them and zeros, along k.
  static FASTRNN_FN V along(const T* p) { return V::load(p); }
  static FASTRNN_FN V along(const T* p, int n) { return V::load(p, n); }
  static FASTRNN_FN V multiply_add(V a, V b, V sum) { return fma(a, b, sum); }
};

#if defined(__AVX512BF16__) && FASTRNN_VECTOR_BYTES == 64
template <>
struct Terms<bfloat16> {
  using V = Pack<float>;
  static constexpr int kInputs = 2;
  static constexpr bool kConverted = false;

  static FASTRNN_FN V spread(const bfloat16* row, int64_t k) {
    int32_t pair;
    memcpy(&pair, row + k, sizeof pair);
    return V((V::Vector)_mm512_set1_epi32(pair));
  }
  // The last input of an odd number; what lies behind it is not read.
  static FASTRNN_FN V spread_last(const bfloat16* row, int64_t k) {
    return V((V::Vector)_mm512_set1_epi32(row[k].bits));
  }
  static FASTRNN_FN V along(const bfloat16* p) { return V((V::Vector)_mm512_loadu_ps(p)); }
  static FASTRNN_FN V along(const bfloat16* p, int n) {
    const __mmask32 mask = n >= 32 ? ~__mmask32(0) : (__mmask32(1) << n) - 1;
    return V((V::Vector)_mm512_maskz_loadu_epi16(mask, p));
  }
  static FASTRNN_FN V multiply_add(V a, V b, V sum) {
    return V((V::Vector)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)a.v, (__m512bh)b.v));
  }
  // Slots of two rows, whose values belong to neighbours in k; values were converted to float.
  static FASTRNN_FN V pair_up(V even, V odd) {
    return V((V::Vector)((V::Bits)odd.v | (V::Bits)((SinglesBits)even.v >> 16)));
  }
};
#endif

// Slots of a lane for `depth` inputs.
template <class T>
constexpr int64_t slots(int64_t depth) {
  return (depth + Terms<T>::kInputs - 1) / Terms<T>::kInputs;
}

FASTRNN_NAMESPACE_END
