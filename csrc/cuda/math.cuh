// The arithmetics a kernel is compiled for: how values are stored, what they are computed in, and
// the product of weights with states.
//
// Weights and exchanged states lie in bricks of 8 rows of 64 bytes each; a row of a brick is 16
// half-precision pairs, 16 floats or 8 doubles of consecutive k. Lane 4r + q of a warp reads the
// 16 bytes at 16q of row r: one brick is one wide, conflict-free access of a warp. The sum over k
// does not care for its order, so those bytes are used as fragments of the matrix instructions as
// they are: weights and states only have to agree.
#pragma once

#include "device.cuh"
#include "tiles.h"

FASTRNN_NAMESPACE_BEGIN

// Adds the product of 16 weight rows, the lane's parts of the first and the last eight, with eight
// state rows: 64 bytes of k are two matrix instructions.
template <void kInstruction(float[4], const unsigned*, const unsigned*)>
FASTRNN_DEVICE void multiply_brick(float d[4], Vector16 a, Vector16 a8, Vector16 b) {
  const unsigned low[4] = {a.word[0], a8.word[0], a.word[1], a8.word[1]};
  kInstruction(d, low, b.word);
  const unsigned high[4] = {a.word[2], a8.word[2], a.word[3], a8.word[3]};
  kInstruction(d, high, b.word + 2);
}

// Storage: of every tensor. Number: of arithmetic and of states. Exchanged: of what meets weights.
struct HalfMath {
  using Storage = Half;
  using Number = float;
  static constexpr bool kMatrix = true;
  static FASTRNN_DEVICE Number load(Half h) { return to_float(h); }
  static FASTRNN_DEVICE Half store(Number f) { return to_half(f); }
  static FASTRNN_DEVICE Half exchanged(Number f) { return to_half(f); }
  static FASTRNN_DEVICE void multiply(float d[4], Vector16 a, Vector16 a8, Vector16 b) {
    multiply_brick<mma_16x8x16_half>(d, a, a8, b);
  }
};

struct BFloat16Math {
  using Storage = BFloat16;
  using Number = float;
  static constexpr bool kMatrix = true;
  static FASTRNN_DEVICE Number load(BFloat16 b) { return to_float(b); }
  static FASTRNN_DEVICE BFloat16 store(Number f) { return to_bfloat16(f); }
  static FASTRNN_DEVICE BFloat16 exchanged(Number f) { return to_bfloat16(f); }
  static FASTRNN_DEVICE void multiply(float d[4], Vector16 a, Vector16 a8, Vector16 b) {
    multiply_brick<mma_16x8x16_bfloat16>(d, a, a8, b);
  }
};

// float32 with products of values rounded to the nearest TF32; sums, states and outputs float32.
struct Tf32Math {
  using Storage = float;
  using Number = float;
  static constexpr bool kMatrix = true;
  static FASTRNN_DEVICE Number load(float f) { return f; }
  static FASTRNN_DEVICE float store(Number f) { return f; }
  static FASTRNN_DEVICE float exchanged(Number f) { return to_tf32(f); }
  static FASTRNN_DEVICE void multiply(float d[4], Vector16 a, Vector16 a8, Vector16 b) {
    multiply_brick<mma_16x8x8_tf32>(d, a, a8, b);
  }
};

template <class T>
struct ScalarMath {
  using Storage = T;
  using Number = T;
  static constexpr bool kMatrix = false;
  static FASTRNN_DEVICE T load(T f) { return f; }
  static FASTRNN_DEVICE T store(T f) { return f; }
  static FASTRNN_DEVICE T exchanged(T f) { return f; }
};

template <class T>
struct VectorOf {
  static constexpr int kCount = 16 / sizeof(T);
  T value[kCount];
  FASTRNN_DEVICE explicit VectorOf(Vector16 v) { memcpy(value, &v, sizeof(v)); }
};

// Sums of one warp: kHalves half-tiles of 8 weight rows with kTiles times 8 state rows.
//
// totals(h, n, e) is the sum of weight row 8h + r and state row 8n + 2q + e, for lane 4r + q.
template <class Math, int kHalves, int kTiles, bool kMatrix = Math::kMatrix>
class Sums;

template <class Math, int kHalves, int kTiles>
class Sums<Math, kHalves, kTiles, true> {
 public:
  static constexpr int kLoads = kTiles;  // state vectors of a brick column that a lane reads

  FASTRNN_DEVICE Sums() {
#pragma unroll
    for (int p = 0; p < kPairs; ++p)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) d_[p][n][e] = 0;
  }
  // The state row of which a lane reads its i-th vector.
  static FASTRNN_DEVICE int state_row(int i, int lane) { return 8 * i + lane / 4; }

  FASTRNN_DEVICE void add(const Vector16 (&weights)[kHalves], const Vector16 (&states)[kLoads]) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      // Half-tiles go in pairs; the partner of an odd one out is zero.
      Vector16 second = {{0, 0, 0, 0}};
      if (2 * p + 1 < kHalves) second = weights[2 * p + 1 < kHalves ? 2 * p + 1 : 0];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) Math::multiply(d_[p][n], weights[2 * p], second, states[n]);
    }
  }
  FASTRNN_DEVICE void finish() {}
  FASTRNN_DEVICE float total(int half, int tile, int e) const {
    return d_[half / 2][tile][2 * (half % 2) + e];
  }

 private:
  static constexpr int kPairs = (kHalves + 1) / 2;
  float d_[kPairs][kTiles][4];
};

template <class Math, int kHalves, int kTiles>
class Sums<Math, kHalves, kTiles, false> {
  using T = typename Math::Number;

 public:
  static constexpr int kLoads = 8 * kTiles;

  FASTRNN_DEVICE Sums() {
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int n = 0; n < kLoads; ++n) d_[h][n] = 0;
  }
  static FASTRNN_DEVICE int state_row(int i, int) { return i; }

  FASTRNN_DEVICE void add(const Vector16 (&weights)[kHalves], const Vector16 (&states)[kLoads]) {
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const VectorOf<T> b(states[n]);
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const VectorOf<T> a(weights[h]);
#pragma unroll
        for (int k = 0; k < VectorOf<T>::kCount; ++k)
          d_[h][n] = fma(a.value[k], b.value[k], d_[h][n]);
      }
    }
  }
  // The four lanes of a weight row have sums over different k of all state rows; each ends with
  // the whole sums of two of every eight.
  FASTRNN_DEVICE void finish() {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int n = 0; n < kLoads; n += 8) {
        T four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const T mine = q & 2 ? d_[h][n + 4 + i] : d_[h][n + i];
          const T others = q & 2 ? d_[h][n + i] : d_[h][n + 4 + i];
          four[i] = mine + shuffle_xor(others, 2);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const T mine = q & 1 ? four[2 + i] : four[i];
          const T others = q & 1 ? four[i] : four[2 + i];
          d_[h][n + i] = mine + shuffle_xor(others, 1);
        }
      }
  }
  FASTRNN_DEVICE T total(int half, int tile, int e) const { return d_[half][8 * tile + e]; }

 private:
  T d_[kHalves][kLoads];
};

FASTRNN_NAMESPACE_END
