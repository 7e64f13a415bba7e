// The kernel of large batches: one stage of one step, as a product of large tiles.
//
// A block computes the sums of some units with kPlaces places. Weights and states go through shared
// memory in pieces of k, of which several are on their way while one is multiplied: so weights are
// read once for kPlaces places, and states once for all units of a block. Blocks of a cluster may
// share k; then each ends with the arithmetic of a part of the places, and the partial sums
// of these meet in its shared memory.
//
// Weights and states lie in bricks, and the arithmetic is that of the stages in forward.cuh and
// backward.cuh, as in sequence.cuh.
#pragma once

#include "exchange.cuh"
#include "math.cuh"

FASTRNN_NAMESPACE_BEGIN

// Where the 16 bytes q of row r of a brick lie: such that eight lanes meet all banks, whether they
// have two rows of it or one q of all rows.
FASTRNN_DEVICE int brick_slot(int r, int q) { return r * 4 + (q ^ (r / 2 % 4)); }

// The sums of a warp: kHalves half-tiles of 8 weight rows with kTiles times 8 places, of bricks in
// shared memory. Matrix instructions for the whole warp.
template <class Math, int kHalves, int kTiles, bool kMatrix = Math::kMatrix>
class WarpTile {
 public:
  FASTRNN_DEVICE void add(const Vector16* weights, const Vector16* states) {
    Vector16 w[kHalves], s[kTiles];
    const int slot = brick_slot(threadIdx.x % 32 / 4, threadIdx.x % 4);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) w[h] = weights[h * 32 + slot];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) s[n] = states[n * 32 + slot];
    sums_.add(w, s);
  }
  // put(half-tile, row in it, tile of places, place in it, sum), for each sum of the lane
  template <class Put>
  FASTRNN_DEVICE void each(const Put& put) const {
    const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
#pragma unroll
        for (int e = 0; e < 2; ++e) put(h, r, n, 2 * q + e, sums_.total(h, n, e));
  }

 private:
  Sums<Math, kHalves, kTiles> sums_;
};

// FMA: a lane has rows i and i + 4 of each half-tile, and place j of each tile, for lane 8 i + j.
template <class Math, int kHalves, int kTiles>
class WarpTile<Math, kHalves, kTiles, false> {
  using T = typename Math::Number;

 public:
  FASTRNN_DEVICE WarpTile() {
#pragma unroll
    for (int m = 0; m < 2 * kHalves; ++m)
#pragma unroll
      for (int n = 0; n < kTiles; ++n) d_[m][n] = 0;
  }
  FASTRNN_DEVICE void add(const Vector16* weights, const Vector16* states) {
    const int i = threadIdx.x % 32 / 8, j = threadIdx.x % 8;
#pragma unroll 1
    for (int q = 0; q < 4; ++q) {
      Vector16 a[2 * kHalves], b[kTiles];
#pragma unroll
      for (int m = 0; m < 2 * kHalves; ++m)
        a[m] = weights[m / 2 * 32 + brick_slot(i + 4 * (m % 2), q)];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) b[n] = states[n * 32 + brick_slot(j, q)];
#pragma unroll
      for (int k = 0; k < VectorOf<T>::kCount; ++k)
#pragma unroll
        for (int m = 0; m < 2 * kHalves; ++m)
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
            d_[m][n] = fma(VectorOf<T>(a[m]).value[k], VectorOf<T>(b[n]).value[k], d_[m][n]);
    }
  }
  template <class Put>
  FASTRNN_DEVICE void each(const Put& put) const {
    const int i = threadIdx.x % 32 / 8, j = threadIdx.x % 8;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int m = 0; m < 2 * kHalves; ++m) put(m / 2, i + 4 * (m % 2), n, j, d_[m][n]);
  }

 private:
  T d_[2 * kHalves][kTiles];
};

template <class Pass, class Stage, int kStage>
class TiledStage {
  using Args = typename Pass::Args;
  using Math = typename Pass::Math;
  using S = typename Math::Storage;
  using N = typename Math::Number;
  static constexpr int kGates = Stage::kIn, kBlocks = tiled_unit_blocks(kGates);
  static constexpr int kUnits = 8 * kBlocks, kHalves = kGates * kBlocks;
  static constexpr int kTiles = kTiledTiles, kPlaces = kTiledPlaces;
  // How the warps share the sums: kParts have a part of k each; of such a part kRowWarps share the
  // weight rows and kPlaceWarps the places. A thread ends with about 64 sums, or 32 double.
  static constexpr int kParts = tiled_parts(sizeof(N)), kRowWarps = Math::kMatrix ? 2 : 4;
  static constexpr int kPlaceWarps = kWarps / kParts / kRowWarps;
  static constexpr int kWarpHalves = kHalves / kRowWarps, kWarpTiles = kTiles / kPlaceWarps;
  static constexpr int kBrickVectors = (kHalves + kTiles) * 32;
  using OfWarp = WarpTile<Math, kWarpHalves, kWarpTiles>;
  static_assert(kHalves % kRowWarps == 0 && kPieceBricks % kParts == 0, "whole warps");

 public:
  FASTRNN_DEVICE TiledStage(const Args& args, unsigned char* shared)
      : p_(args),
        d_(int(blockIdx.z)),
        course_{args.time.steps, (d_ == 1) != Pass::kBackward},
        split_(args.work.split),
        rank_(split_ > 1 ? int(cluster_rank()) : 0),
        tile_{int(blockIdx.x) / split_, 0},
        group_(int(blockIdx.y)),
        pieces_((Vector16*)shared),
        sums_((N*)shared),
        exchange_(args, d_, nullptr) {}

  FASTRNN_DEVICE void run(int64_t s) {
    const Moment now = p_.time.moment(course_.step(s));
    if (int64_t(tile_.index) * kPlaces >= now.alive()) return;
    {
      OfWarp tile;
      multiply(s, tile);
      // Pieces give way to sums.
      synchronize();
      put(tile);
    }
    synchronize();
    finish(s, now);
  }

 private:
  FASTRNN_DEVICE void synchronize() const {
    if (split_ > 1)
      cluster_arrive(), cluster_wait();
    else
      sync_block();
  }

  FASTRNN_DEVICE void multiply(int64_t s, OfWarp& tile) const {
    const Product& product = p_.products[kStage];
    const int begin = int(int64_t(product.bricks) * rank_ / split_);
    const int bricks = int(int64_t(product.bricks) * (rank_ + 1) / split_) - begin;
    const Vector16* weights =
        product.weights[d_] + (int64_t(group_) * product.bricks + begin) * kHalves * 32;
    const unsigned char* states =
        exchange_.rows(kStage) + exchange_.offset(kStage, s, tile_) + begin * kBrickBytes;

    const int warp = threadIdx.x / 32, part = warp % kParts;
    const int half = warp / kParts % kRowWarps * kWarpHalves;
    const int first_tile = warp / kParts / kRowWarps * kWarpTiles;
    const int pieces = (bricks + kPieceBricks - 1) / kPieceBricks;
#pragma unroll
    for (int piece = 0; piece < kPieces - 1; ++piece) fetch(piece, bricks, weights, states);
    for (int piece = 0; piece < pieces; ++piece) {
      wait_copies<kPieces - 2>();
      sync_block();  // the piece is there for all, and all are done with the one before
      fetch(piece + kPieces - 1, bricks, weights, states);
      const Vector16* brick = place_of(piece);
#pragma unroll
      for (int b = 0; b < kPieceBricks; b += kParts)
        if (piece * kPieceBricks + b + part < bricks) {
          const Vector16* own = brick + (b + part) * kBrickVectors;
          tile.add(own + half * 32, own + (kHalves + first_tile) * 32);
        }
    }
    // The last wait was for the last piece; what has been closed since is empty.
  }

  FASTRNN_DEVICE Vector16* place_of(int piece) const {
    return pieces_ + piece % kPieces * kPieceBricks * kBrickVectors;
  }
  // Begins to copy a piece, if there is one: of each brick the weights, then the states.
  FASTRNN_DEVICE void fetch(int piece, int bricks, const Vector16* weights,
                            const unsigned char* states) const {
    const int64_t row_bytes = p_.exchanges[kStage].row_bytes;
    Vector16* to = place_of(piece);
#pragma unroll
    for (int b = 0; b < kPieceBricks; ++b, to += kBrickVectors) {
      const int brick = piece * kPieceBricks + b;
      if (brick >= bricks) break;
      const Vector16* from = weights + int64_t(brick) * kHalves * 32;
      const int lane = threadIdx.x % 32, slot = brick_slot(lane / 4, lane % 4);
#pragma unroll
      for (int half = threadIdx.x / 32; half < kHalves; half += kWarps)
        begin_copy(to + half * 32 + slot, from + half * 32 + lane);
#pragma unroll
      for (int n = threadIdx.x / 32; n < kTiles; n += kWarps)
        begin_copy(to + (kHalves + n) * 32 + slot,
                   states + (n * 8 + lane / 4) * row_bytes + brick * kBrickBytes + lane % 4 * 16);
    }
    close_copies();
  }

  // Sums lie by part of k, half-tile, tile of places, place and row. The place is permuted, by the
  // block of units too, so that the stores of put() and the loads of finish() meet all banks.
  FASTRNN_DEVICE int at(int part, int half, int tile, int place, int row) const {
    const int slot = (place % 2 * 4 + place / 2) ^ (half / kGates % 4);
    return (((part * kHalves + half) * (kTiles / split_) + tile) * 8 + slot) * 8 + row;
  }
  FASTRNN_DEVICE void put(const OfWarp& tile) const {
    const int warp = threadIdx.x / 32, part = rank_ * kParts + warp % kParts;
    const int first_half = warp / kParts % kRowWarps * kWarpHalves;
    const int first_tile = warp / kParts / kRowWarps * kWarpTiles;
    const int own_tiles = kTiles / split_;
    tile.each([&](int half, int row, int n, int place, N sum) {
      const int owner = (first_tile + n) / own_tiles;
      N* sums = split_ > 1 ? remote(sums_, unsigned(owner)) : sums_;
      sums[at(part, first_half + half, (first_tile + n) % own_tiles, place, row)] = sum;
    });
  }

  FASTRNN_DEVICE void finish(int64_t s, const Moment& now) const {
    constexpr bool kLastStage = kStage == Pass::kStages - 1;
    constexpr int kNext = kLastStage ? 0 : kStage + 1;
    constexpr int kTogether = 4;  // of a thread, whose loads are under way together
    const Product& product = p_.products[kStage];
    const Exchange& out = p_.exchanges[kNext];
    const int own_places = kPlaces / split_, skipped = rank_ * own_places;
    const int64_t first_place = int64_t(tile_.index) * kPlaces + skipped;
    const Moment next = s + 1 < p_.time.steps ? p_.time.moment(course_.step(s + 1)) : Moment();
    const int u = threadIdx.x % kUnits;
    const int unit = group_ * kUnits + u;
    const auto active = [&](int m) {
      return m < own_places && first_place + m < now.alive() && unit < product.units;
    };
    constexpr int kStride = kThreads / kUnits;  // places that the block works on at a time
    for (int first = threadIdx.x / kUnits; first < own_places; first += kTogether * kStride) {
      Stage own[kTogether] = {{p_, d_}, {p_, d_}, {p_, d_}, {p_, d_}};
      Place places[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (active(first + i * kStride))
          places[i] = p_.time.place(first_place + first + i * kStride);
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (active(first + i * kStride)) own[i].load(now, next, places[i], unit);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int m = first + i * kStride;
        if (!active(m)) continue;
        N total[kGates], values[Stage::kOut ? Stage::kOut : 1];
#pragma unroll
        for (int g = 0; g < kGates; ++g) {
          total[g] = 0;
          for (int part = 0; part < split_ * kParts; ++part)
            total[g] += sums_[at(part, u / 8 * kGates + g, m / 8, m % 8, u % 8)];
        }
        own[i].finish(total, values);
        S* row = (S*)(exchange_.rows(kNext) + exchange_.offset(kNext, s + kLastStage, tile_) +
                      int64_t(skipped + m) * out.row_bytes);
#pragma unroll
        for (int k = 0; k < Stage::kOut; ++k)
          row[exchange_index(unit, k, out.width)] = Math::exchanged(values[k]);
        own[i].store();
      }
    }
  }

  const Args& p_;
  const int d_;
  const Course course_;
  const int split_, rank_;
  const Tile tile_;
  const int group_;
  Vector16* const pieces_;
  N* const sums_;
  const GlobalExchange exchange_;
};

// grid: places times split, groups of units, directions
template <class Pass>
__global__ void __launch_bounds__(kThreads, 1)
    run_tiled(const __grid_constant__ typename Pass::Args args) {
  unsigned char* const shared = shared_memory<unsigned char>();
  if (args.work.first_stage == 0) {
    TiledStage<Pass, typename Pass::First, 0>(args, shared).run(args.work.first_step);
    return;
  }
  if constexpr (Pass::kStages == 2)
    TiledStage<Pass, typename Pass::Second, 1>(args, shared).run(args.work.first_step);
}

FASTRNN_NAMESPACE_END
