#include "plan.h"

namespace fastrnn {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align(int64_t bytes) { return ceil_div(bytes, 128) * 128; }

// Rates of a Hopper GPU, for choosing only: from published measurements (README.md), not from this
// code.
struct Rates {
  static constexpr double kLaunch = 2.0e-6;   // of a dependent kernel
  static constexpr double kBlock = 0.15e-6;   // barriers of a block and arithmetic of a tile
  static constexpr double kCluster = 0.4e-6;  // a barrier of a cluster
  static constexpr double kFlag = 0.65e-6;    // from a value's store to its use in another block
  static constexpr double kShared = 180e9;    // bytes/s of one multiprocessor
  static constexpr double kFromL2 = 45e9;     // bytes/s that one multiprocessor reads
  static constexpr double kL2 = 4e12;         // and all together
  static constexpr int64_t kL2Bytes = 40 << 20;
  static constexpr double kMemory = 3.5e12;
};

int64_t group_bytes(const StageSize& stage, int unit_blocks) {
  return int64_t(stage.bricks) * stage.gates * unit_blocks * 512;
}
// Bricks of a row that a block has, at most, where `split` blocks share k: whole parts of warps.
int64_t most_bricks(const StageSize& stage, int split) {
  return split == 1 ? stage.bricks : stage.bricks / split + 1;
}
int64_t groups(const StageSize& stage, int unit_blocks) {
  return ceil_div(stage.units, 8 * unit_blocks);
}

class Planner {
 public:
  explicit Planner(const PlanInput& input)
      : in_(input), tiles_(ceil_div(input.batch, input.tile_places)) {}

  bool stepwise(int unit_blocks, Plan& plan) const {
    plan = base(Regime::stepwise, unit_blocks);
    plan.teams = plan.tiles;
    plan.shared_bytes = 2 * plan.partial_bytes;
    if (plan.shared_bytes > in_.shared_bytes) return false;  // of one block of units it never is
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      const int64_t all = groups(stage, unit_blocks);
      if (all > plan.blocks) plan.blocks = int(all);
      const double weights = double(all) * group_bytes(stage, unit_blocks) * in_.directions;
      const double states = double(tiles_) * in_.tile_places * stage.row_bytes * in_.directions;
      const double traffic = weights * tiles_ + states * all;
      const double from = weights > Rates::kL2Bytes ? weights / Rates::kMemory : 0;
      const double waves = double(ceil_div(all * tiles_ * in_.directions, in_.processors));
      const double own = waves * (Rates::kBlock + (double(group_bytes(stage, unit_blocks)) +
                                                   double(in_.tile_places) * stage.row_bytes) /
                                                      Rates::kFromL2);
      double work = traffic / Rates::kL2;
      if (from > work) work = from;
      if (own > work) work = own;
      plan.step += Rates::kLaunch + work;
    }
    return true;
  }

  // A team is `size` blocks; each keeps its weights. In a grid `split` of them share k.
  bool persistent(Regime regime, int unit_blocks, int size, int split, Plan& plan) const {
    plan = base(regime, unit_blocks);
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
    int teams = in_.processors / (size * in_.directions);
    if (teams > tiles_) teams = int(tiles_);
    if (teams < 1) return false;
    const int team_tiles = int(ceil_div(tiles_, teams));
    teams = int(ceil_div(tiles_, team_tiles));
    plan.teams = teams;
    plan.shared_bytes = plan.weight_bytes + 2 * plan.partial_bytes;
    if (shares_memory)
      for (int s = 0; s < in_.stages; ++s)
        plan.shared_bytes += 2 * int64_t(team_tiles) * in_.tile_places * in_.stage[s].row_bytes;
    if (plan.shared_bytes > in_.shared_bytes) return false;
    // Blocks of a grid wait for each other, so all have to be resident. Clusters wait only for
    // their own blocks, which the hardware starts together: more of them would merely queue.
    const int64_t needed = int64_t(teams) * in_.directions;
    double rounds = 1;
    if (plan.cluster > 1) {
      const int clusters =
          in_.resident_clusters(regime, unit_blocks, plan.cluster, int(plan.shared_bytes));
      if (clusters < 1) return false;
      if (regime == Regime::grid && needed * (size / split) > clusters) return false;
      if (regime == Regime::cluster) rounds = double(ceil_div(needed, clusters));
    } else if (regime == Regime::grid) {
      const int64_t blocks = in_.resident_blocks(regime, unit_blocks, int(plan.shared_bytes));
      if (needed * size > blocks * in_.processors) return false;
    }
    for (int s = 0; s < in_.stages; ++s) {
      const StageSize& stage = in_.stage[s];
      const double turn = Rates::kBlock + (split > 1 ? Rates::kCluster : 0) +
                          double(group_bytes(stage, unit_blocks)) / Rates::kShared;
      const double states = double(in_.tile_places) * stage.row_bytes / split /
                            (shares_memory ? Rates::kShared : Rates::kFromL2);
      const double work = team_tiles * plan.per_block[s] * (turn + states);
      if (regime == Regime::processor) {
        plan.step += work;
      } else if (regime == Regime::cluster) {
        plan.step += work + Rates::kCluster;
      } else {
        // While one tile's states travel, another is computed.
        const double alone = plan.per_block[s] * (turn + states) + Rates::kFlag;
        plan.step += work > alone ? work : alone;
      }
    }
    plan.step *= rounds;
    return true;
  }

  int64_t most_groups(int unit_blocks) const {
    int64_t most = 1;
    for (int s = 0; s < in_.stages; ++s)
      if (groups(in_.stage[s], unit_blocks) > most) most = groups(in_.stage[s], unit_blocks);
    return most;
  }

 private:
  Plan base(Regime regime, int unit_blocks) const {
    Plan plan;
    plan.regime = regime;
    plan.unit_blocks = unit_blocks;
    plan.tiles = int(tiles_);
    int gates = 1;
    for (int s = 0; s < in_.stages; ++s)
      if (in_.stage[s].gates > gates) gates = in_.stage[s].gates;
    plan.partial_bytes =
        align(int64_t(in_.warps) * gates * 8 * unit_blocks * in_.tile_places * in_.number_bytes);
    return plan;
  }

  const PlanInput& in_;
  const int64_t tiles_;
};

}  // namespace

const char* regime_name(Regime regime) {
  static const char* const names[kRegimes] = {"stepwise", "processor", "cluster", "grid"};
  return names[int(regime)];
}

bool make_plan(const PlanInput& input, const PlanChoice& choice, Plan& best) {
  const Planner planner(input);
  bool found = false;
  const auto consider = [&](bool possible, const Plan& plan) {
    const auto other = [](int wanted, int got) { return wanted >= 0 && wanted != got; };
    if (!possible || other(choice.regime, int(plan.regime))) return;
    if (other(choice.cluster, plan.cluster) || other(choice.unit_blocks, plan.unit_blocks)) return;
    if (!found || plan.step < best.step) best = plan;
    found = true;
  };
  for (int unit_blocks = 1; unit_blocks <= input.most_blocks_of_units; unit_blocks *= 2) {
    Plan plan;
    consider(planner.stepwise(unit_blocks, plan), plan);
    consider(planner.persistent(Regime::processor, unit_blocks, 1, 1, plan), plan);
    for (int size = 2; size <= input.max_cluster; size *= 2)
      consider(planner.persistent(Regime::cluster, unit_blocks, size, 1, plan), plan);
    const int64_t groups = planner.most_groups(unit_blocks);
    for (int64_t per_block = 1; per_block <= 4; ++per_block)
      for (int split = 1; split <= input.max_cluster && split <= input.warps; split *= 2) {
        const int64_t size = ceil_div(ceil_div(groups, per_block), split) * split;
        if (size * input.directions <= input.processors)
          consider(planner.persistent(Regime::grid, unit_blocks, int(size), split, plan), plan);
      }
  }
  return found;
}

}  // namespace fastrnn
