// What the kernels of a pass over the sequence are given beside tensors: shapes of products and
// exchanges, and how blocks share the work. Filled by plan.cpp and layer.inl.
#pragma once

#include "tiles.h"
#include "timeline.cuh"

FASTRNN_NAMESPACE_BEGIN

// States as they are given from step to step, in the layout of bricks: of every place, row_bytes
// bytes, in which each unit has `width` values; exchange_index says where.
// Twice, as the outputs of a step are written while its inputs may still be read.
struct Exchange {
  unsigned char* rows = nullptr;  // (D, 2, places, row_bytes), zero beyond units and places
  int64_t row_bytes = 0;
  int width = 1;
  int producers = 0;       // blocks that write a part of each row
  int producer_bytes = 0;  // such a part; the last one may be smaller
};

constexpr int kExchangeStep = 8;  // from one value of a unit to the next
FASTRNN_FN int64_t exchange_index(int unit, int value, int width) {
  const unsigned u = unsigned(unit);
  return (int64_t(u / 8) * width + value) * kExchangeStep + u % 8;
}

// A product of a step: every unit has `gates` rows of weights, which meet a row of the exchange.
struct Product {
  int64_t units = 0;
  int bricks = 0;                   // of a row
  int groups = 0, per_block = 0;    // groups of units, and how many a block has
  const Vector16* weights[2] = {};  // by direction: (groups, bricks, half-tiles, 32 lanes)
};

// The blocks of a launch: grid.x share the units, grid.y are independent teams that share the
// places, grid.z are the directions.
struct Work {
  int tiles = 0;                        // of places; of each, tile_places
  int64_t places = 0, tile_places = 0;  // tiles * tile_places; the batch and some that nobody reads
  int team_tiles = 0;                   // tiles of one team, at most
  int64_t first_step = 0, end_step = 0;  // in the order of the pass
  int first_stage = 0, end_stage = 0;
  int split = 1;  // blocks of a cluster that share k, where states go through global memory
  // Of shared memory, in front of the states: weights, and twice the partial sums.
  int64_t weight_bytes = 0, partial_bytes = 0;
  bool resident = false;  // weights are read from shared memory, where the block puts them first
  unsigned* flags = nullptr;  // (D, stage, tiles, grid.x) steps that each block has done, or null
};

// What passes forward and backward have in common.
struct Layer {
  Timeline time;
  int64_t hidden = 0, output = 0;
  int directions = 1;
  int stages = 1;
  Product products[kMaxStages];    // by stage
  Exchange exchanges[kMaxStages];  // the input of each stage; stage i feeds the next, in a circle
  Work work;
};

FASTRNN_NAMESPACE_END
