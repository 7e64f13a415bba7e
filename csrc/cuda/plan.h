// How a pass over the sequence is spread over a device: which regime, how many blocks. Plain host
// C++, which knows devices by numbers only.
#pragma once

#include <stdint.h>

#include <functional>

namespace fastrnn {

// Where weights are while the steps go by, and how states go from step to step.
enum class Regime : int {
  stepwise,   // in the L2 cache or memory; a launch for each step
  processor,  // in one multiprocessor, which needs no other
  cluster,    // in the multiprocessors of a cluster; states through their shared memory
  grid,       // in all multiprocessors; states through the L2 cache
  tiled,      // as stepwise, for large batches: read once for 64 places
};
constexpr int kRegimes = 5;
const char* regime_name(Regime regime);

constexpr int64_t kMostRows = 65535;  // of blocks, in a grid

// What a caller insists on; negative: choose.
struct PlanChoice {
  int regime = -1;
  int cluster = -1;
  int unit_blocks = -1;
  int tile_places = -1;
};

// A product of a step as a plan sees it.
struct StageSize {
  int64_t units = 0;
  int gates = 1;          // rows of weights of a unit
  int bricks = 0;         // of 64 bytes in a row
  int64_t row_bytes = 0;  // of a row of states
};

struct PlanInput {
  int stages = 1;
  StageSize stage[2];
  int64_t steps = 0, batch = 0;
  int directions = 1;
  // The arithmetic: whether it has matrix instructions; bytes of a value, and of a sum.
  bool matrix = false;
  int value_bytes = 4, number_bytes = 4;
  // The device. Clusters of more than 8 blocks are for the query to allow.
  int processors = 0, shared_bytes = 0, max_cluster = 1;
  // How many blocks of a plan's kernel, or clusters of them, are resident at the same time.
  std::function<int(const struct Plan&)> resident_blocks, resident_clusters;
};

struct Plan {
  Regime regime = Regime::stepwise;
  int unit_blocks[2] = {1, 1};  // of 8 units in a group, by stage
  bool wide = false;            // tiles of 32 places rather than 16
  int tile_places = 8;
  int blocks = 1;             // that share the units of a direction
  int cluster = 1;            // of blocks: the team; tiled or in a grid those that share k
  int teams = 1;              // of a direction, which share the places
  int tiles = 1;              // of places
  int per_block[2] = {1, 1};  // groups of a block, by stage
  int64_t weight_bytes = 0, partial_bytes = 0, shared_bytes = 0;  // of shared memory
  double step = 0;                                                // predicted seconds
};

// The fastest plan by prediction. Returns false where nothing that is insisted on can run;
// stepwise always can.
bool make_plan(const PlanInput& input, const PlanChoice& choice, Plan& plan);

}  // namespace fastrnn
