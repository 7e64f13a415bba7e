#include "plan.h"

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

  bool stepwise(int unit_blocks, Plan& plan) const {
    plan = base(Regime::stepwise, unit_blocks, false);
    plan.teams = plan.tiles;
    plan.shared_bytes = 2 * plan.partial_bytes;
    if (plan.shared_bytes > in_.shared_bytes) return false;  // of one block of units it never is
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      const int64_t all = groups(stage, unit_blocks);
      if (all > plan.blocks) plan.blocks = int(all);
      const double weights = double(all) * group_bytes(stage, unit_blocks) * in_.directions;
      const double states = double(plan.tiles) * states_of(plan, stage) * in_.directions;
      const double traffic = weights * plan.tiles + states * all;
      const double waves = double(ceil_div(all * plan.tiles * in_.directions, in_.processors));
      const double read =
          (double(group_bytes(stage, unit_blocks)) + states_of(plan, stage)) / Rates::kFromL2;
      const double own = Rates::kBlock +
                         most(most(read, round_trips(plan, stage, 1)), multiplication(plan, stage));
      const double work = most(traffic / Rates::kL2, waves * own);
      plan.step += Rates::kLaunch + most(work, from_memory(weights));
    }
    return true;
  }

  // Blocks of clusters of `split` share k.
  bool tiled(int split, Plan& plan) const {
    plan = Plan();
    plan.regime = Regime::tiled;
    plan.cluster = split;
    plan.tile_places = kTiledPlaces;
    plan.tiles = int(ceil_div(in_.batch, kTiledPlaces));
    plan.teams = plan.tiles;
    for (int s = 0; s < in_.stages; ++s) {
      const int gates = in_.stage[s].gates;
      plan.unit_blocks[s] = tiled_unit_blocks(gates);
      plan.shared_bytes = most(plan.shared_bytes, tiled_shared_bytes(gates, in_.number_bytes));
    }
    if (plan.shared_bytes > in_.shared_bytes) return false;
    const int64_t together = int64_t(split > 1 ? in_.resident_clusters(plan) : in_.processors);
    if (together < 1) return false;
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      const int64_t all = groups(stage, plan.unit_blocks[s]);
      plan.blocks = int(most(int64_t(plan.blocks), all));
      const int halves = stage.gates * plan.unit_blocks[s];
      const int64_t bricks = ceil_div(stage.bricks, split);
      const double bytes = double(halves + kTiledTiles) * bricks * 512;
      const double multiplied = double(halves) * kTiledTiles * bricks / brick_rate();
      const int64_t needed = all * plan.tiles * in_.directions;
      const double rounds = double(ceil_div(needed, together));
      // Each thread has the arithmetic of so many units and places, four at a time.
      const int64_t outputs = 8 * plan.unit_blocks[s] * kTiledPlaces / split / kThreads;
      const double once = Rates::kBlock + Rates::kFar * (1 + ceil_div(outputs, 4)) +
                          (split > 1 ? 2 * Rates::kCluster : 0);
      const double weights = double(all) * halves * stage.bricks * 512 * in_.directions;
      const double work = rounds * (once + most(bytes / Rates::kFromL2, multiplied));
      const double traffic = double(needed) * split * bytes / Rates::kL2;
      plan.step += Rates::kLaunch + most(most(work, traffic), from_memory(weights));
    }
    return true;
  }

  // A team is `size` blocks; each keeps its weights. In a grid `split` of them share k.
  bool persistent(Regime regime, int unit_blocks, bool wide, int size, int split,
                  Plan& plan) const {
    plan = base(regime, unit_blocks, wide);
    plan.blocks = size;
    plan.cluster = regime == Regime::cluster ? size : split;
    const bool shares_memory = regime != Regime::grid;
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      plan.per_block[s] = int(ceil_div(groups(stage, unit_blocks), size));
      plan.weight_bytes += int64_t(split) * plan.per_block[s] * most_bricks(stage, split) *
                           (group_bytes(stage, unit_blocks) / stage.bricks);
    }
    plan.weight_bytes = align(plan.weight_bytes);
    const int64_t tiles = plan.tiles;
    int64_t teams = in_.processors / (size * in_.directions);
    if (teams > tiles) teams = tiles;
    if (teams < 1) return false;
    const int64_t team_tiles = ceil_div(tiles, teams);
    teams = ceil_div(tiles, team_tiles);
    plan.teams = int(teams);
    plan.shared_bytes = plan.weight_bytes + 2 * plan.partial_bytes;
    if (shares_memory)
      for (int s = 0; s < in_.stages; ++s)
        plan.shared_bytes += 2 * team_tiles * plan.tile_places * in_.stage[s].row_bytes;
    if (plan.shared_bytes > in_.shared_bytes) return false;
    // Blocks of a grid wait for each other, so all have to be resident. Clusters wait only for
    // their own blocks, which the hardware starts together: more of them would merely queue.
    const int64_t needed = teams * in_.directions;
    double rounds = 1;
    if (plan.cluster > 1) {
      const int clusters = in_.resident_clusters(plan);
      if (clusters < 1) return false;
      if (regime == Regime::grid && needed * (size / split) > clusters) return false;
      if (regime == Regime::cluster) rounds = double(ceil_div(needed, clusters));
    } else if (regime == Regime::grid) {
      const int64_t blocks = in_.resident_blocks(plan);
      if (needed * size > blocks * in_.processors) return false;
    }
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      // What a warp has fetched ahead stays in its registers if it is all: sequence.cuh.
      const bool held = in_.stages == 1 && plan.per_block[s] == 1 && loads(plan, stage, split) == 1;
      const double weights = held ? 0 : double(group_bytes(stage, unit_blocks)) / Rates::kShared;
      const double turn = Rates::kBlock + (split > 1 ? Rates::kCluster : 0) +
                          most(weights, multiplication(plan, stage));
      const double states = shares_memory ? states_of(plan, stage) / Rates::kShared
                                          : most(states_of(plan, stage) / split / Rates::kFromL2,
                                                 round_trips(plan, stage, split));
      const double one = plan.per_block[s] * (turn + states), work = double(team_tiles) * one;
      if (regime == Regime::processor) {
        plan.step += work;
      } else if (regime == Regime::cluster) {
        plan.step += work + Rates::kCluster;
      } else {
        // While one tile's states travel, another is computed.
        plan.step += most(work, one + Rates::kFlag);
      }
    }
    plan.step *= rounds;
    return true;
  }

  int64_t most_groups(int unit_blocks) const {
    int64_t found = 1;
    for (int s = 0; s < in_.stages; ++s) found = most(found, groups(in_.stage[s], unit_blocks));
    return found;
  }

 private:
  static double most(double a, double b) { return a > b ? a : b; }
  static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

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
  int64_t loads(const Plan& plan, const StageSize& stage, int split) const {
    const int ahead =
        bricks_ahead(in_.matrix, plan.wide, stage.gates * plan.unit_blocks[0], in_.stages);
    return ceil_div(stage.bricks, int64_t(kWarps) * split * ahead);
  }
  double round_trips(const Plan& plan, const StageSize& stage, int split) const {
    return Rates::kLatency * double(loads(plan, stage, split));
  }

  Plan base(Regime regime, int unit_blocks, bool wide) const {
    Plan plan;
    plan.regime = regime;
    plan.unit_blocks[0] = plan.unit_blocks[1] = unit_blocks;
    plan.wide = wide;
    plan.tile_places = 8 * sequence_tiles(in_.matrix, wide);
    plan.tiles = int(ceil_div(in_.batch, plan.tile_places));
    plan.partial_bytes = align(int64_t(kWarps) * gates_of(in_) * 8 * unit_blocks *
                               plan.tile_places * in_.number_bytes);
    return plan;
  }

  const PlanInput& in_;
};

}  // namespace

const char* regime_name(Regime regime) {
  static const char* const names[kRegimes] = {"stepwise", "processor", "cluster", "grid", "tiled"};
  return names[int(regime)];
}

bool make_plan(const PlanInput& input, const PlanChoice& choice, Plan& best) {
  const Planner planner(input);
  bool found = false;
  const auto consider = [&](bool possible, const Plan& plan) {
    const auto other = [](int wanted, int got) { return wanted >= 0 && wanted != got; };
    if (!possible || other(choice.regime, int(plan.regime))) return;
    if (other(choice.cluster, plan.cluster) || other(choice.unit_blocks, plan.unit_blocks[0]))
      return;
    if (other(choice.tile_places, plan.tile_places)) return;
    if (!found || plan.step < best.step) best = plan;
    found = true;
  };
  Plan plan;
  for (int split = 1; split <= input.max_cluster && split <= kTiledMostSplit; split *= 2)
    consider(planner.tiled(split, plan), plan);
  for (int unit_blocks = 1; unit_blocks <= most_unit_blocks(input.number_bytes); unit_blocks *= 2) {
    consider(planner.stepwise(unit_blocks, plan), plan);
    consider(planner.persistent(Regime::processor, unit_blocks, false, 1, 1, plan), plan);
    for (int size = 2; size <= input.max_cluster; size *= 2)
      consider(planner.persistent(Regime::cluster, unit_blocks, false, size, 1, plan), plan);
    const int64_t groups = planner.most_groups(unit_blocks);
    for (int64_t per_block = 1; per_block <= 4; ++per_block)
      for (int split = 1; split <= input.max_cluster && split <= kWarps; split *= 2) {
        const int64_t size = ceil_div(ceil_div(groups, per_block), split) * split;
        if (size * input.directions > input.processors) continue;
        for (const bool wide : {false, true})
          if (!wide || (unit_blocks == 1 && has_wide_tiles(input.matrix, input.stage[0].gates)))
            consider(planner.persistent(Regime::grid, unit_blocks, wide, int(size), split, plan),
                     plan);
      }
  }
  return found;
}

}  // namespace fastrnn
