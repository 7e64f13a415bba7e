#include "plan.h"

#include <algorithm>
#include <vector>

#include "tiles.h"

namespace fastrnn {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align(int64_t bytes) { return ceil_div(bytes, 128) * 128; }

// Rates of a Hopper GPU, for choosing only: from published measurements (README.md), not from this
// code.
struct Rates {
  static constexpr double kLaunch = 2.0e-6;    // of a dependent kernel
  static constexpr double kBlock = 0.15e-6;    // barriers of a block and arithmetic of a tile
  static constexpr double kCluster = 0.4e-6;   // a barrier of a cluster
  static constexpr double kFlag = 0.65e-6;     // from a value's store to its use in another block
  static constexpr double kLatency = 0.25e-6;  // of a load from L2
  static constexpr double kFar = 0.7e-6;       // of a load from memory, among many
  static constexpr double kShared = 180e9;     // bytes/s of one multiprocessor
  static constexpr double kFromL2 = 45e9;      // bytes/s that one multiprocessor reads
  static constexpr double kL2 = 4e12;          // and all together
  static constexpr int64_t kL2Bytes = 40 << 20;
  static constexpr double kMemory = 3.5e12;
};

int gates_of(const PlanInput& in) {
  return in.stages == 2 && in.stage[1].gates > in.stage[0].gates ? in.stage[1].gates
                                                                 : in.stage[0].gates;
}

class Planner {
 public:
  explicit Planner(const PlanInput& input) : in_(input) {}

  // All that kernels are compiled for, before teams are counted.
  std::vector<Plan> candidates() const {
    std::vector<Plan> found;
    for (int split = 1; split <= in_.max_cluster && split <= kTiledMostSplit; split *= 2)
      found.push_back(tiled(split));
    for (int unit_blocks = 1; unit_blocks <= most_unit_blocks(in_.number_bytes); unit_blocks *= 2) {
      found.push_back(stepwise(unit_blocks));
      found.push_back(persistent(base(Regime::processor, unit_blocks), 1, 1));
      for (int size = 2; size <= in_.max_cluster; size *= 2)
        found.push_back(persistent(base(Regime::cluster, unit_blocks), size, size));
      const int64_t groups = most_groups(unit_blocks);
      for (int64_t per_block = 1; per_block <= 4; ++per_block)
        for (int split = 1; split <= in_.max_cluster && split <= kWarps; split *= 2) {
          const int64_t size = ceil_div(ceil_div(groups, per_block), split) * split;
          found.push_back(persistent(base(Regime::grid, unit_blocks), int(size), split));
          if (unit_blocks == 1 && has_wide_tiles(in_.matrix, in_.stage[0].gates, in_.stages))
            found.push_back(persistent(base(Regime::grid, unit_blocks, true), int(size), split));
        }
    }
    return found;
  }

  // Clusters, or blocks where these are one, that have a multiprocessor for each of their blocks.
  int64_t most_room(const Plan& plan) const { return in_.processors / plan.cluster; }

  // How many teams a plan has, and its time, where so many of its clusters are resident. More of
  // them never take longer. Returns false where the plan cannot run.
  bool predict(Plan& plan, int64_t room) const {
    if (room < 1) return false;
    const bool by_steps = plan.regime == Regime::stepwise || plan.regime == Regime::tiled;
    if (by_steps ? plan.shared_bytes > in_.shared_bytes : !count_teams(plan, room)) return false;
    plan.step = plan.regime == Regime::stepwise ? stepwise_step(plan)
                : plan.regime == Regime::tiled  ? tiled_step(plan, room)
                                                : persistent_step(plan, room);
    return true;
  }

  // The same for the room that the device has. It depends on shared memory, which may depend on
  // teams.
  bool settle(Plan& plan) const {
    int64_t room = most_room(plan);
    for (int64_t held = resident(plan); held < room; held = resident(plan)) {
      room = held;
      if (!predict(plan, room)) return false;
    }
    return true;
  }

 private:
  static double most(double a, double b) { return a > b ? a : b; }
  static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

  // ---- Candidates

  Plan base(Regime regime, int unit_blocks, bool wide = false) const {
    Plan plan;
    plan.regime = regime;
    plan.unit_blocks[0] = plan.unit_blocks[1] = unit_blocks;
    plan.wide = wide;
    plan.tile_places = 8 * sequence_tiles(in_.matrix, wide);
    plan.tiles = plan.teams = int(ceil_div(in_.batch, plan.tile_places));
    plan.partial_bytes = align(int64_t(kWarps) * gates_of(in_) * 8 * unit_blocks *
                               plan.tile_places * in_.number_bytes);
    plan.shared_bytes = 2 * plan.partial_bytes;
    return plan;
  }
  Plan stepwise(int unit_blocks) const {
    Plan plan = base(Regime::stepwise, unit_blocks);
    plan.blocks = int(most_groups(unit_blocks));
    return plan;
  }
  // Blocks of clusters of `split` share k.
  Plan tiled(int split) const {
    Plan plan;
    plan.regime = Regime::tiled;
    plan.cluster = split;
    plan.tile_places = kTiledPlaces;
    plan.tiles = plan.teams = int(ceil_div(in_.batch, kTiledPlaces));
    for (int s = 0; s < in_.stages; ++s) {
      const int gates = in_.stage[s].gates;
      plan.unit_blocks[s] = tiled_unit_blocks(gates);
      plan.shared_bytes = most(plan.shared_bytes, tiled_shared_bytes(gates, in_.number_bytes));
      plan.blocks = int(most(int64_t(plan.blocks), groups(in_.stage[s], plan.unit_blocks[s])));
    }
    return plan;
  }
  // A team is `size` blocks; each keeps its weights.
  Plan persistent(Plan plan, int size, int cluster) const {
    plan.blocks = size;
    plan.cluster = cluster;
    const int split = split_of(plan);
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      const int unit_blocks = plan.unit_blocks[s];
      plan.per_block[s] = int(ceil_div(groups(stage, unit_blocks), size));
      plan.weight_bytes += int64_t(split) * plan.per_block[s] * most_bricks(stage, split) *
                           (group_bytes(stage, unit_blocks) / stage.bricks);
    }
    plan.weight_bytes = align(plan.weight_bytes);
    return plan;
  }

  // Blocks that share k.
  static int split_of(const Plan& plan) {
    return plan.regime == Regime::cluster ? 1 : plan.cluster;
  }
  int64_t most_groups(int unit_blocks) const {
    int64_t found = 1;
    for (int s = 0; s < in_.stages; ++s) found = most(found, groups(in_.stage[s], unit_blocks));
    return found;
  }

  // ---- Room

  int64_t resident(const Plan& plan) const {
    if (plan.cluster > 1) return in_.resident_clusters(plan);
    if (plan.regime == Regime::grid) return int64_t(in_.resident_blocks(plan)) * in_.processors;
    return most_room(plan);  // blocks that wait for nobody: all that fit may come
  }

  bool count_teams(Plan& plan, int64_t room) const {
    int64_t teams = room / (plan.blocks / plan.cluster * in_.directions), tile_bytes = 0;
    plan.shared_bytes = plan.weight_bytes + 2 * plan.partial_bytes;
    if (plan.regime != Regime::grid) {
      for (int s = 0; s < in_.stages; ++s)
        tile_bytes += 2 * plan.tile_places * in_.stage[s].row_bytes;
      const int64_t fitting = (in_.shared_bytes - plan.shared_bytes) / tile_bytes;
      if (fitting < 1) return false;
      // Blocks of a grid wait for each other, so all have to be resident. The other teams, which do
      // not, queue where shared memory has no room for the states of fewer.
      teams = most(teams, ceil_div(plan.tiles, fitting));
    }
    if (teams > plan.tiles) teams = plan.tiles;
    if (teams < 1) return false;
    const int64_t team_tiles = ceil_div(plan.tiles, teams);
    plan.teams = int(ceil_div(plan.tiles, team_tiles));
    plan.shared_bytes += team_tiles * tile_bytes;
    return plan.shared_bytes <= in_.shared_bytes && plan.teams <= kMostRows;
  }

  // ---- Time of a step

  double stepwise_step(const Plan& plan) const {
    double step = 0;
    const int unit_blocks = plan.unit_blocks[0];
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      const int64_t all = groups(stage, unit_blocks);
      const double weights = double(all) * group_bytes(stage, unit_blocks) * in_.directions;
      const double states = double(plan.tiles) * states_of(plan, stage) * in_.directions;
      const double traffic = weights * plan.tiles + states * all;
      const double waves = double(ceil_div(all * plan.tiles * in_.directions, in_.processors));
      const double read =
          (double(group_bytes(stage, unit_blocks)) + states_of(plan, stage)) / Rates::kFromL2;
      const double own =
          Rates::kBlock + most(most(read, round_trips(plan, stage)), multiplication(plan, stage));
      const double work = most(traffic / Rates::kL2, waves * own);
      step += Rates::kLaunch + most(work, from_memory(weights));
    }
    return step;
  }

  double tiled_step(const Plan& plan, int64_t room) const {
    double step = 0;
    const int split = plan.cluster;
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      const int64_t all = groups(stage, plan.unit_blocks[s]);
      const int halves = stage.gates * plan.unit_blocks[s];
      const int64_t bricks = ceil_div(stage.bricks, split);
      const double bytes = double(halves + kTiledTiles) * bricks * 512;
      const double multiplied = double(halves) * kTiledTiles * bricks / brick_rate();
      const int64_t needed = all * plan.tiles * in_.directions;
      const double rounds = double(ceil_div(needed, room));
      // Each thread has the arithmetic of so many units and places, four at a time.
      const int64_t outputs = 8 * plan.unit_blocks[s] * kTiledPlaces / split / kThreads;
      const double once = Rates::kBlock + Rates::kFar * (1 + ceil_div(outputs, 4)) +
                          (split > 1 ? 2 * Rates::kCluster : 0);
      const double weights = double(all) * halves * stage.bricks * 512 * in_.directions;
      const double work = rounds * (once + most(bytes / Rates::kFromL2, multiplied));
      const double traffic = double(needed) * split * bytes / Rates::kL2;
      step += Rates::kLaunch + most(most(work, traffic), from_memory(weights));
    }
    return step;
  }

  double persistent_step(const Plan& plan, int64_t room) const {
    double step = 0;
    const int split = split_of(plan);
    const double team_tiles = double(ceil_div(plan.tiles, plan.teams));
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      // What a warp has fetched ahead stays in its registers if it is all: sequence.cuh.
      const bool held = in_.stages == 1 && plan.per_block[s] == 1 && loads(plan, stage) == 1;
      const double weights =
          held ? 0 : double(group_bytes(stage, plan.unit_blocks[s])) / Rates::kShared;
      const double turn = Rates::kBlock + (split > 1 ? Rates::kCluster : 0) +
                          most(weights, multiplication(plan, stage));
      const double states =
          plan.regime == Regime::grid
              ? most(states_of(plan, stage) / split / Rates::kFromL2, round_trips(plan, stage))
              : states_of(plan, stage) / Rates::kShared;
      const double one = plan.per_block[s] * (turn + states), work = team_tiles * one;
      if (plan.regime == Regime::processor) {
        step += work;
      } else if (plan.regime == Regime::cluster) {
        step += work + Rates::kCluster;
      } else {
        // While one tile's states travel, another is computed.
        step += most(work, one + Rates::kFlag);
      }
    }
    const int64_t clusters = plan.blocks / plan.cluster;
    return step * double(ceil_div(plan.teams * clusters * in_.directions, room));
  }

  static int64_t groups(const StageSize& stage, int unit_blocks) {
    return ceil_div(stage.units, 8 * unit_blocks);
  }
  static int64_t group_bytes(const StageSize& stage, int unit_blocks) {
    return int64_t(stage.bricks) * stage.gates * unit_blocks * 512;
  }
  // Bricks of a row that a block has, at most, where `split` blocks share k: whole parts of warps.
  static int64_t most_bricks(const StageSize& stage, int split) {
    return split == 1 ? stage.bricks : stage.bricks / split + 1;
  }
  static double states_of(const Plan& plan, const StageSize& stage) {  // bytes of a tile
    return double(plan.tile_places) * stage.row_bytes;
  }
  // Weights that the L2 cache does not keep come from memory in each step.
  static double from_memory(double weights) {
    return weights > Rates::kL2Bytes ? weights / Rates::kMemory : 0;
  }

  // Products of two bricks, 8 weight rows with 8 places, that a multiprocessor makes in a second.
  double brick_rate() const {
    const double flops = in_.matrix ? (in_.value_bytes == 2 ? 3.0e12 : 1.5e12)
                                    : (in_.value_bytes == 4 ? 0.38e12 : 0.19e12);
    return flops / (2 * 64 * 64 / in_.value_bytes);
  }
  // Of a group's weights with a tile's states. Matrix instructions take half-tiles in pairs.
  double multiplication(const Plan& plan, const StageSize& stage) const {
    int64_t halves = stage.gates * plan.unit_blocks[0];
    if (in_.matrix) halves += halves % 2;
    return double(halves) * (plan.tile_places / 8) * stage.bricks / brick_rate();
  }
  // How often a warp of sequence.cuh waits for some bricks before it asks for the next.
  int64_t loads(const Plan& plan, const StageSize& stage) const {
    const int ahead = bricks_ahead(in_.matrix, plan.wide, stage.gates * plan.unit_blocks[0],
                                   in_.stages, in_.number_bytes);
    return ceil_div(stage.bricks, int64_t(kWarps) * split_of(plan) * ahead);
  }
  double round_trips(const Plan& plan, const StageSize& stage) const {
    return Rates::kLatency * double(loads(plan, stage));
  }

  const PlanInput& in_;
};

}  // namespace

const char* regime_name(Regime regime) {
  static const char* const names[kRegimes] = {"stepwise", "processor", "cluster", "grid", "tiled"};
  return names[int(regime)];
}

bool make_plan(const PlanInput& input, const PlanChoice& choice, Plan& best) {
  const auto allows = [](int wanted, int got) { return wanted < 0 || wanted == got; };
  const Planner planner(input);
  std::vector<Plan> plans;
  for (Plan& plan : planner.candidates())
    if (allows(choice.regime, int(plan.regime)) && allows(choice.cluster, plan.cluster) &&
        allows(choice.unit_blocks, plan.unit_blocks[0]) &&
        allows(choice.tile_places, plan.tile_places) &&
        planner.predict(plan, planner.most_room(plan)))
      plans.push_back(plan);
  // To ask what room there is takes longer than a launch, and, where kernels are compiled at run
  // time, a compilation: so it is asked only for plans that would be the fastest if there is
  // enough.
  std::stable_sort(plans.begin(), plans.end(),
                   [](const Plan& a, const Plan& b) { return a.step < b.step; });
  bool found = false;
  for (Plan& plan : plans) {
    if (found && plan.step >= best.step) break;
    if (!planner.settle(plan) || (found && plan.step >= best.step)) continue;
    best = plan, found = true;
  }
  return found;
}

}  // namespace fastrnn
