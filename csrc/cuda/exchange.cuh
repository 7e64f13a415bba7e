// How the blocks of a team give each other the values of a step: through global memory, which is
// the L2 cache, or through the shared memory of a cluster. Both have the same members; sequence.cuh
// is generic over them, README.md says why neither can hang and why two copies of each row are
// enough.
#pragma once

#include "layer.h"

FASTRNN_NAMESPACE_BEGIN

#if !defined(FASTRNN_MOST_SPINS)
#define FASTRNN_MOST_SPINS \
  0  // a debug build ends a kernel that polls one flag this often; 0: never
#endif

// A tile of places, and which of its team's it is.
struct Tile {
  int index = 0, of_team = 0;
};
FASTRNN_DEVICE Tile first_tile() { return {int(blockIdx.y), 0}; }
FASTRNN_DEVICE Tile next(const Tile& tile) {
  return {tile.index + int(gridDim.y), tile.of_team + 1};
}

// Blocks that write a part of a row: none of them if last < first.
struct Writers {
  int first = 0, last = -1;
};

// Through global memory. Each block has a flag per stage and tile, which only it writes: the number
// of steps of which it has written its part. A warp waits for those alone whose values it reads.
class GlobalExchange {
 public:
  static constexpr bool kShared = false;

  FASTRNN_DEVICE GlobalExchange(const Layer& layer, int direction, unsigned char*)
      : p_(layer), d_(direction) {}
  FASTRNN_DEVICE void begin() const {}

  // The input of a stage, and where in it the row of the tile's first place lies.
  FASTRNN_DEVICE unsigned char* rows(int stage) const { return p_.exchanges[stage].rows; }
  FASTRNN_DEVICE int64_t offset(int stage, int64_t step, const Tile& tile) const {
    const int64_t place =
        (d_ * 2 + step % 2) * p_.work.places + int64_t(tile.index) * p_.work.tile_places;
    return place * p_.exchanges[stage].row_bytes;
  }
  // Who writes [begin, end) of each row.
  FASTRNN_DEVICE Writers writers(int stage, int begin, int end) const {
    const Exchange& e = p_.exchanges[stage];
    if (!p_.work.flags || begin >= end) return {};
    const int last = (end - 1) / e.producer_bytes;
    return {begin / e.producer_bytes, last < e.producers ? last : e.producers - 1};  // padded rows
  }
  // The calling warp will read what they write; `done` is what their flags say when they have.
  FASTRNN_DEVICE void wait(int stage, const Tile& tile, Writers writers, unsigned done) const {
    if (!p_.work.flags) return;
    const unsigned* flags = p_.work.flags + flag(stage, tile) - blockIdx.x;
    for (int block = writers.first + int(threadIdx.x % 32); block <= writers.last; block += 32) {
      int spins = 0;
      while (load_acquire(flags + block) < done)
        if (FASTRNN_MOST_SPINS && ++spins == FASTRNN_MOST_SPINS) trap();
    }
    sync_warp();
  }
  // A value of a row. Called by all threads: the lanes of a unit block of a place are neighbours,
  // and so are their values.
  template <class S>
  FASTRNN_DEVICE void store(S* to, S value, bool active, bool) const {
    if (active) *to = value;
  }
  // Where this block's flag for a tile lies.
  FASTRNN_DEVICE int64_t flag(int stage, const Tile& tile) const {
    const int64_t row = (int64_t(d_) * kMaxStages + stage) * p_.work.tiles + tile.index;
    return row * gridDim.x + blockIdx.x;
  }
  // All of this block's part of the tile has been stored.
  FASTRNN_DEVICE void publish(int64_t flag, unsigned done) const {
    sync_block();
    if (p_.work.flags && threadIdx.x == 0) store_release(p_.work.flags + flag, done);
  }
  // Once for each stage, by all threads: all of the block's tiles have been stored; and no longer
  // than until others have done the same.
  FASTRNN_DEVICE void arrive() const {}
  FASTRNN_DEVICE void wait_for_all() const {}

 private:
  const Layer& p_;
  const int d_;
};

// Through shared memory: every block of the cluster, which is the team, has all states of the
// team's tiles, and each value is stored to all of them. One barrier of the cluster ends a stage.
class ClusterExchange {
 public:
  static constexpr bool kShared = true;

  FASTRNN_DEVICE ClusterExchange(const Layer& layer, int direction, unsigned char* memory)
      : p_(layer), d_(direction), memory_(memory) {}

  // Fetches the states before the first step.
  FASTRNN_DEVICE void begin() const {
    const GlobalExchange initial(p_, d_, nullptr);
    for (int stage = 0; stage < p_.stages; ++stage) {
      const int64_t count = p_.work.tile_places * p_.exchanges[stage].row_bytes / 16;
      for (Tile tile = first_tile(); tile.index < p_.work.tiles; tile = next(tile))
        for (int copy = 0; copy < 2; ++copy) {
          const auto* from =
              (const Vector16*)(initial.rows(stage) + initial.offset(stage, copy, tile));
          auto* to = (Vector16*)(rows(stage) + offset(stage, copy, tile));
          for (int64_t i = threadIdx.x; i < count; i += kThreads) to[i] = from[i];
        }
    }
    arrive(), wait_for_all();
  }
  FASTRNN_DEVICE unsigned char* rows(int) const { return memory_; }
  FASTRNN_DEVICE int64_t offset(int stage, int64_t step, const Tile& tile) const {
    const int64_t of_team = int64_t(p_.work.team_tiles) * p_.work.tile_places;
    const int64_t place = (step % 2) * of_team + tile.of_team * p_.work.tile_places;
    const int64_t before = stage ? 2 * of_team * p_.exchanges[0].row_bytes : 0;
    return before + place * p_.exchanges[stage].row_bytes;
  }
  FASTRNN_DEVICE Writers writers(int, int, int) const { return {}; }
  FASTRNN_DEVICE void wait(int, const Tile&, Writers, unsigned) const {}
  // Each of the eight lanes of a unit block gathers all their values, and stores them, in wide
  // stores, to one or two blocks of the cluster. Values of units beyond the last are zero.
  template <class S>
  FASTRNN_DEVICE void store(S* to, S value, bool, bool some_active) const {
    constexpr int kVectors = 8 * sizeof(S) / 16;
    union {
      S values[8];
      Vector16 vectors[kVectors];
    } all;
#pragma unroll
    for (int i = 0; i < 8; ++i) all.values[i] = shuffle(value, int(threadIdx.x % 32) / 8 * 8 + i);
    if (!some_active) return;
    Vector16* mine = (Vector16*)(to - threadIdx.x % 8);
    for (unsigned rank = threadIdx.x % 8; rank < cluster_size(); rank += 8) {
      Vector16* theirs = remote(mine, rank);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) theirs[i] = all.vectors[i];
    }
  }
  FASTRNN_DEVICE int64_t flag(int, const Tile&) const { return 0; }
  FASTRNN_DEVICE void publish(int64_t, unsigned) const {}  // arrive() does
  FASTRNN_DEVICE void arrive() const { cluster_arrive(); }
  FASTRNN_DEVICE void wait_for_all() const { cluster_wait(); }

 private:
  const Layer& p_;
  const int d_;
  unsigned char* const memory_;
};

FASTRNN_NAMESPACE_END
