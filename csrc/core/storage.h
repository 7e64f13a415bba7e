// The types that values have in memory, and the type in which arithmetic on them is done.
//
// The 16-bit types are storage only: every register, every sum and everything that a call keeps for
// itself between two roundings is a Compute<T>.
#pragma once

#include "platform.h"

namespace fastrnn {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct ComputeOf {
  using type = T;
};
template <>
struct ComputeOf<bfloat16> {
  using type = float;
};
template <>
struct ComputeOf<float16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// Whether values in memory are narrower than the arithmetic on them.
template <class T>
constexpr bool kNarrow = sizeof(T) < sizeof(Compute<T>);

}  // namespace fastrnn
