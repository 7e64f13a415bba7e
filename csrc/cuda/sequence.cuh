// The kernel of every regime: a team of blocks goes through steps.
//
// Of each tile of places a stage takes: the product of the block's rows of weights with the tile's
// states, split over k among the warps; their partial sums, through shared memory; and the stage's
// arithmetic, a thread for each unit and place, of which the results go to the exchange.
//
// Launched once for all steps it is the persistent kernel: weights stay in shared memory. Launched
// for one stage of one step, it is the stepwise one: weights are read where they were packed, and
// the end of the launch is the barrier.
#pragma once

#include "exchange.cuh"
#include "math.cuh"

FASTRNN_NAMESPACE_BEGIN

// kBlocks of 8 units and kTiles of 8 places: what a block computes at a time.
template <class Math_, int kBlocks_>
struct TileShape {
  using Math = Math_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kTiles = Math::kMatrix ? 2 : 1;
  static constexpr int kUnits = 8 * kBlocks, kPlaces = 8 * kTiles;
  static constexpr int partial_count(int gates) { return kWarps * gates * kUnits * kPlaces; }
};

// The product of a group's weights with a tile's states over bricks [begin, end).
template <class Math, int kHalves, int kTiles, bool kShared>
FASTRNN_DEVICE void multiply(const Vector16* weights, const unsigned char* rows, int64_t row_bytes,
                             int begin, int end, Sums<Math, kHalves, kTiles>& sums) {
  using Result = Sums<Math, kHalves, kTiles>;
  // Loads of several bricks are under way at a time: states come from far.
  constexpr int kAhead = Result::kLoads > 4 ? 1 : 4;
  const int lane = threadIdx.x % 32;
  for (int brick = begin; brick < end; brick += kAhead) {
    Vector16 states[kAhead][Result::kLoads];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (brick + i >= end) break;
#pragma unroll
      for (int n = 0; n < Result::kLoads; ++n) {
        const unsigned char* p = rows + Result::state_row(n, lane) * row_bytes +
                                 (brick + i) * kBrickBytes + (lane % 4) * 16;
        states[i][n] = kShared ? *(const Vector16*)p : load_exchanged(p);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (brick + i >= end) break;
      Vector16 own[kHalves];
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        own[h] = weights[(int64_t(brick + i) * kHalves + h) * 32 + lane];
      sums.add(own, states[i]);
    }
  }
}

template <class Pass, class Shape, class Exchanging>
class Sequence {
  using Args = typename Pass::Args;
  using Math = typename Pass::Math;
  using S = typename Math::Storage;
  using N = typename Math::Number;
  static constexpr int kUnits = Shape::kUnits, kPlaces = Shape::kPlaces;

 public:
  // Shared memory: weights of both stages if they are resident, partial sums, states.
  FASTRNN_DEVICE Sequence(const Args& args, unsigned char* shared)
      : p_(args),
        d_(int(blockIdx.z)),
        course_{args.time.steps, (d_ == 1) != Pass::kBackward},
        weights_(shared),
        partial_((N*)(shared + args.work.weight_bytes)),
        exchange_(args, d_, shared + args.work.weight_bytes + args.work.partial_bytes) {}

  FASTRNN_DEVICE void run() {
    fetch_weights();
    exchange_.begin();
    const Work& work = p_.work;
    for (int64_t s = work.first_step; s < work.end_step; ++s) {
      if (work.first_stage == 0) stage<typename Pass::First, 0>(s);
      if constexpr (Pass::kStages == 2)
        if (work.end_stage == 2) stage<typename Pass::Second, 1>(s);
    }
  }

 private:
  FASTRNN_DEVICE int first_group(int stage) const { return blockIdx.x * p_.products[stage].per_block; }
  FASTRNN_DEVICE int own_groups(int stage) const {
    const Product& product = p_.products[stage];
    const int left = product.groups - first_group(stage);
    return left < product.per_block ? left : product.per_block;
  }
  template <class Stage>
  static FASTRNN_DEVICE int64_t group_vectors(const Product& product) {
    return int64_t(product.bricks) * Stage::kIn * Shape::kBlocks * 32;
  }
  // Where a stage's weights of this block are: in shared memory those of the second stage follow.
  template <class Stage, int kStage>
  FASTRNN_DEVICE const Vector16* weights() const {
    const Product& product = p_.products[kStage];
    if (!p_.work.resident)
      return product.weights[d_] + first_group(kStage) * group_vectors<Stage>(product);
    const int64_t before =
        kStage ? p_.products[0].per_block * group_vectors<typename Pass::First>(p_.products[0]) : 0;
    return (const Vector16*)weights_ + before;
  }

  FASTRNN_DEVICE void fetch_weights() {
    if (!p_.work.resident) return;
    fetch<typename Pass::First, 0>();
    if constexpr (Pass::kStages == 2) fetch<typename Pass::Second, 1>();
    sync_block();
  }
  template <class Stage, int kStage>
  FASTRNN_DEVICE void fetch() {
    const Product& product = p_.products[kStage];
    const int64_t each = group_vectors<Stage>(product), count = own_groups(kStage) * each;
    const Vector16* from = product.weights[d_] + first_group(kStage) * each;
    Vector16* to = const_cast<Vector16*>(weights<Stage, kStage>());
    for (int64_t i = threadIdx.x; i < count; i += kThreads) to[i] = from[i];
  }

  template <class Stage, int kStage>
  FASTRNN_DEVICE void stage(int64_t s) {
    const int64_t t = course_.step(s);
    if (own_groups(kStage) > 0)
      for (int tile = blockIdx.y; tile < p_.work.tiles; tile += gridDim.y) {
        const int64_t length = p_.time.length_of(int64_t(tile) * kPlaces);
        if (t < length) run_tile<Stage, kStage>(s, t, tile, length);
      }
    exchange_.end_stage();
  }

  template <class Stage, int kStage>
  FASTRNN_DEVICE void run_tile(int64_t s, int64_t t, int tile, int64_t length) {
    constexpr bool kLastStage = kStage == Pass::kStages - 1;
    constexpr int kNext = kLastStage ? 0 : kStage + 1, kHalves = Stage::kIn * Shape::kBlocks;
    const Product& product = p_.products[kStage];
    const Exchange& out = p_.exchanges[kNext];
    const int64_t row_bytes = p_.exchanges[kStage].row_bytes;
    const int64_t tile_place = int64_t(tile) * kPlaces;
    const int warp = threadIdx.x / 32;
    const int begin = product.bricks * warp / kWarps, end = product.bricks * (warp + 1) / kWarps;

    // This thread's unit of a group, and its place.
    const int u = threadIdx.x % kUnits, m = threadIdx.x / kUnits;
    const int64_t place = tile_place + m;
    const bool alive = m < kPlaces && place < p_.time.alive(t);
    // The steps this launch begins with have their input from before it.
    const int64_t joins = course_.reverse ? course_.steps - length : 0;
    const int64_t start = p_.work.first_step > joins ? p_.work.first_step : joins;
    const bool fed_here = kStage == 0 ? s > start : p_.work.first_stage == 0;

    const Vector16* weights = this->template weights<Stage, kStage>();
    for (int g = 0; g < own_groups(kStage); ++g) {
      const int64_t unit = int64_t(first_group(kStage) + g) * kUnits + u;
      const bool active = alive && unit < product.units;
      Stage own(p_, d_);
      if (active) own.load(t, place, unit);
      if (g == 0 && fed_here)
        exchange_.wait(kStage, tile, begin * kBrickBytes, end * kBrickBytes, unsigned(s + kStage));
      {
        Sums<Math, kHalves, Shape::kTiles> sums;
        multiply<Math, kHalves, Shape::kTiles, Exchanging::kShared>(
            weights, exchange_.rows(kStage, s, tile), row_bytes, begin, end, sums);
        sums.finish();
        put(sums, warp);
      }
      sync_block();
      if (active) {
        N total[Stage::kIn], values[Stage::kOut ? Stage::kOut : 1];
        take<Stage::kIn>(u, m, total);
        own.finish(total, values);
        S* row = (S*)(exchange_.rows(kNext, s + kLastStage, tile) + m * out.row_bytes);
#pragma unroll
        for (int k = 0; k < Stage::kOut; ++k)
          exchange_.store(row + exchange_index(unit, k, out.width), Math::exchanged(values[k]));
      }
      if (g + 1 < own_groups(kStage)) sync_block();
      weights += group_vectors<Stage>(product);
    }
    exchange_.publish(kNext, tile, unsigned(s + 1));
  }

  // Partial sums lie by warp, half-tile, tile, place of it, row; even places before odd ones,
  // which spreads a warp's stores over all banks.
  static FASTRNN_DEVICE int in_tile(int place) { return (place % 2) * 4 + place / 2; }

  template <int kHalves>
  FASTRNN_DEVICE void put(const Sums<Math, kHalves, Shape::kTiles>& sums, int warp) {
    const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int n = 0; n < Shape::kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          partial_[((warp * kHalves + h) * Shape::kTiles + n) * 64 + in_tile(2 * q + e) * 8 + r] =
              sums.total(h, n, e);
  }
  template <int kGates>
  FASTRNN_DEVICE void take(int u, int m, N* total) const {
    constexpr int kHalves = kGates * Shape::kBlocks;
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const int half = u / 8 * kGates + g;
      const N* p = partial_ + (half * Shape::kTiles + m / 8) * 64 + in_tile(m % 8) * 8 + u % 8;
      N sum = p[0];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += p[w * kHalves * Shape::kTiles * 64];
      total[g] = sum;
    }
  }

  const Args& p_;
  const int d_;
  const Course course_;
  unsigned char* const weights_;
  N* const partial_;
  const Exchanging exchange_;
};

template <class Pass, class Shape, class Exchanging>
__global__ void __launch_bounds__(kThreads, 1)
    run_sequence(const __grid_constant__ typename Pass::Args args) {
  Sequence<Pass, Shape, Exchanging>(args, shared_memory<unsigned char>()).run();
}

FASTRNN_NAMESPACE_END
