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
};
constexpr int kRegimes = 4;
const char* regime_name(Regime regime);

// What a caller insists on; negative: choose.
struct PlanChoice {
  int regime = -1;
  int cluster = -1;
  int unit_blocks = -1;
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
  int tile_places = 8;
  int number_bytes = 4;  // of a partial sum
  int warps = 8;
  int most_blocks_of_units = 2;  // units of a group over 8, at most
  // The device.
  int processors = 0, shared_bytes = 0, max_cluster = 1;
  // How many of a kernel's blocks, or clusters of blocks, are resident at the same time.
  std::function<int(Regime, int unit_blocks, int shared_bytes)> resident_blocks;
  std::function<int(Regime, int unit_blocks, int cluster, int shared_bytes)> resident_clusters;
};

struct Plan {
  Regime regime = Regime::stepwise;
  int unit_blocks = 1;        // of 8 units in a group
  int blocks = 1;             // that share the units of a direction
  int cluster = 1;            // of blocks: the team, or in a grid those that share k
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
