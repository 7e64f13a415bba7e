// The host's side of what all passes share: lengths on the device, the plan of a pass, its weights
// in bricks, its launches.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <type_traits>
#include <vector>

#include "../core/arena.h"
#include "../core/arguments.h"
#include "handles.cuh"
#include "kernels.h"
#include "plan.h"

FASTRNN_NAMESPACE_BEGIN

// Lengths of a call on the host, and their way to the device.
class HostTimeline {
 public:
  HostTimeline(const Sizes& sizes, const CudaCall& call, Arena& arena, const char* what)
      : sizes_(sizes), call_(call), what_(what) {
    const int64_t T = sizes.steps, B = sizes.batch;
    if (!sizes.lengths && !sizes.batch_sizes) return;
    words_ = 2 * (T + 1) + B + (sizes.lengths ? B : 0);
    memory_ = call.timeline ? (uint32_t*)call.timeline : arena.take<uint32_t>(words_);
    length_.resize(B);
    offset_.resize(T + 1);
    if (sizes.lengths) order_.resize(B), sort();
    if (sizes.batch_sizes)
      for (int64_t t = 0; t < T; ++t) {
        offset_[t + 1] = offset_[t] + sizes.batch_sizes[t];
        for (int64_t b = 0; b < sizes.batch_sizes[t]; ++b) length_[b] = int(t + 1);
      }
  }

  int64_t alive(int64_t t) const {
    return offset_.empty() ? sizes_.batch : offset_[t + 1] - offset_[t];
  }

  // What kernels read; its lengths are uploaded on the stream, unless they are on the device.
  Timeline on_device() const {
    const int64_t T = sizes_.steps, B = sizes_.batch;
    Timeline time;
    time.steps = T, time.batch = B;
    time.packed = sizes_.batch_sizes != nullptr;
    time.reset = sizes_.reset, time.reset_step = sizes_.reset_step;
    time.reset_row = sizes_.reset_row;
    if (!words_) return time;
    if (!call_.timeline) send();
    time.offset = (const int64_t*)memory_;
    time.length = (const int*)(memory_ + 2 * (T + 1));
    if (!order_.empty()) time.order = time.length + B;
    return time;
  }

 private:
  void send() const {
    const int64_t T = sizes_.steps, B = sizes_.batch;
    std::vector<uint32_t> words(words_);
    memcpy(words.data(), offset_.data(), (T + 1) * sizeof(int64_t));
    memcpy(words.data() + 2 * (T + 1), length_.data(), B * sizeof(int));
    if (!order_.empty()) memcpy(words.data() + 2 * (T + 1) + B, order_.data(), B * sizeof(int));
    for (int64_t sent = 0; sent < words_; sent += UploadArgs::kWords) {
      UploadArgs args;
      args.out = memory_ + sent;
      args.count = int(words_ - sent < UploadArgs::kWords ? words_ - sent : UploadArgs::kWords);
      memcpy(args.words, words.data() + sent, args.count * sizeof(uint32_t));
      Launch how;
      how.threads = 256, how.stream = call_.stream;
      launch(upload_kernel(), how, args, what_);
    }
  }
  // Counting sort, longest first, stable.
  void sort() {
    const int64_t T = sizes_.steps, B = sizes_.batch;
    std::vector<int64_t> count(T + 2, 0);
    for (int64_t b = 0; b < B; ++b) ++count[T - sizes_.lengths[b] + 1];
    for (int64_t n = 1; n < T + 2; ++n) count[n] += count[n - 1];
    // count[T - l] is now the number of rows longer than l.
    for (int64_t t = 0; t < T; ++t) offset_[t + 1] = offset_[t] + count[T - t];
    for (int64_t b = 0; b < B; ++b) {
      const int64_t place = count[T - sizes_.lengths[b]]++;
      order_[place] = int(b), length_[place] = int(sizes_.lengths[b]);
    }
  }

  const Sizes& sizes_;
  const CudaCall& call_;
  const char* what_;
  int64_t words_ = 0;
  uint32_t* memory_ = nullptr;
  std::vector<int64_t> offset_;
  std::vector<int> length_, order_;
};

// A product of a step by where its weights come from: Packing has the meaning of the strides.
struct StageSource {
  const void* weights[2] = {};
  int64_t gate = 0, unit = 0, slot_step = 0, value = 0;
  int gates = 1, width = 1;
  int64_t units = 0, values = 0;
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline Launch over(int64_t count, void* stream) {
  constexpr int64_t kMostBlocks = 4096;
  Launch how;
  how.threads = 256, how.stream = stream;
  const int64_t blocks = (count + 255) / 256;
  how.grid[0] = unsigned(blocks < 1 ? 1 : blocks > kMostBlocks ? kMostBlocks : blocks);
  return how;
}

// Warps for as many threads' work.
inline Launch over_warps(int64_t warps, void* stream) { return over(32 * warps, stream); }

constexpr int64_t kMostOfSize = (int64_t(1) << 30) - 1;  // kernels count them in int

// A pass over the sequence.
template <class Pass>
class Schedule {
  using Math = typename Pass::Math;
  using Args = typename Pass::Args;
  using S = typename Math::Storage;
  static constexpr int kNumberBytes = sizeof(typename Math::Number);

 public:
  Schedule(const Sizes& sizes, const CudaCall& call, const StageSource* sources, const char* what)
      : sizes_(sizes), call_(call), sources_(sources), what_(what) {
    for (const int64_t size : {sizes.steps, sizes.batch, sizes.hidden})
      if (size > kMostOfSize)
        throw std::runtime_error(std::string("fastrnn: ") + what +
                                 ": expected fewer than 2^30 steps, rows and units, got " +
                                 std::to_string(size));
    PlanInput input;
    input.stages = Pass::kStages;
    for (int s = 0; s < Pass::kStages; ++s) {
      const StageSource& from = sources[s];
      StageSize& stage = input.stage[s];
      const int64_t used = round_up(from.values, 8) * from.width * int64_t(sizeof(S));
      stage.units = from.units, stage.gates = from.gates;
      stage.bricks = int(round_up(used, kBrickBytes) / kBrickBytes);
      // An odd number of bricks spreads the rows of a column over all banks of shared memory.
      stage.row_bytes = (stage.bricks | 1) * kBrickBytes;
    }
    input.steps = sizes.steps, input.batch = sizes.batch, input.directions = sizes.directions;
    input.matrix = Math::kMatrix;
    input.value_bytes = sizeof(S), input.number_bytes = kNumberBytes;
    const DeviceProperties device = device_properties(call.device, what);
    input.processors = device.processors, input.shared_bytes = device.shared_bytes;
    input.max_cluster = device.max_cluster;
    input.resident_blocks = [&](const Plan& plan) {
      allow_most(kernel<Pass>(plan), device, what_);
      return resident_blocks(kernel<Pass>(plan), team(plan), what_);
    };
    input.resident_clusters = [&](const Plan& plan) {
      allow_most(kernel<Pass>(plan), device, what_);
      return resident_clusters(kernel<Pass>(plan), team(plan), what_);
    };
    plan_ = planned(input, device);
    if (call.plan) *call.plan = plan_;
    for (int s = 0; s < Pass::kStages; ++s) stages_[s] = input.stage[s];
  }

  const Plan& plan() const { return plan_; }
  int64_t places() const { return int64_t(plan_.tiles) * plan_.tile_places; }
  int64_t exchange_bytes(int stage) const {
    return sizes_.directions * 2 * places() * stages_[stage].row_bytes;
  }

  // Memory, and everything of `args` that this class knows.
  void allocate(Arena& arena, Args& args) {
    const bool persistent = !by_steps();
    args.hidden = sizes_.hidden, args.output = sizes_.output, args.directions = sizes_.directions;
    args.stages = Pass::kStages;
    int64_t before = arena.used();
    zeros_ = arena.take<Vector16>(0);
    for (int s = 0; s < Pass::kStages; ++s) {
      Exchange& exchange = args.exchanges[s];
      exchange.rows = arena.take<unsigned char>(exchange_bytes(s));
      exchange.row_bytes = stages_[s].row_bytes, exchange.width = sources_[s].width;
      // What enters the first step forward is not zero, and written by prepare_forward.
      if (!Pass::kBackward && s == 0) before = arena.used(), zeros_ = arena.take<Vector16>(0);
    }
    const int64_t flags = int64_t(sizes_.directions) * kMaxStages * plan_.tiles * plan_.blocks;
    if (plan_.regime == Regime::grid) args.work.flags = arena.take<unsigned>(flags);
    zero_vectors_ = (arena.used() - before) / 16;
    for (int s = 0; s < Pass::kStages; ++s) {
      Product& product = args.products[s];
      const int unit_blocks = plan_.unit_blocks[s];
      product.units = stages_[s].units, product.bricks = stages_[s].bricks;
      product.groups = int((product.units + 8 * unit_blocks - 1) / (8 * unit_blocks));
      product.per_block = persistent ? plan_.per_block[s] : 1;
      const int64_t vectors =
          int64_t(product.groups) * product.bricks * sources_[s].gates * unit_blocks * 32;
      for (int d = 0; d < sizes_.directions; ++d)
        product.weights[d] = arena.take<Vector16>(vectors);
      // This stage feeds the next one.
      Exchange& fed = args.exchanges[(s + 1) % Pass::kStages];
      const int each = product.per_block * 8 * unit_blocks;
      fed.producers = (product.groups + product.per_block - 1) / product.per_block;
      fed.producer_bytes = each * sources_[(s + 1) % Pass::kStages].width * int(sizeof(S));
    }
    Work& work = args.work;
    work.tiles = plan_.tiles, work.places = places();
    work.tile_places = plan_.tile_places;
    work.team_tiles = (plan_.tiles + plan_.teams - 1) / plan_.teams;
    work.weight_bytes = persistent ? plan_.weight_bytes : 0;
    work.partial_bytes = plan_.partial_bytes;
    work.resident = persistent;
    work.split = plan_.regime == Regime::cluster ? 1 : plan_.cluster;
  }

  // What a pass has to prepare. Returns the warps for it.
  int64_t prepare(const Args& args, Preparation<Math>& preparation) const {
    preparation.time = args.time;
    preparation.hidden = args.hidden, preparation.output = args.output;
    preparation.directions = args.directions;
    preparation.packed = 0;
    preparation.zeros[0] = {zeros_, zero_vectors_};
    preparation.zeros[1] = {nullptr, 0};
    int64_t warps = zero_vectors_ / 32 + 1;
    for (int s = 0; s < Pass::kStages; ++s)
      for (int d = 0; d < sizes_.directions; ++d) {
        const StageSource& from = sources_[s];
        const Product& product = args.products[s];
        Packing<Math>& packing = preparation.packings[preparation.packed++];
        packing = {(const S*)from.weights[d],
                   from.gate,
                   from.unit,
                   from.slot_step,
                   from.value,
                   from.gates,
                   from.width,
                   from.units,
                   from.values,
                   plan_.unit_blocks[s],
                   product.groups,
                   product.bricks,
                   const_cast<Vector16*>(product.weights[d])};
        warps = std::max(warps, packing.chunks() * Packing<Math>::kChunkVectors / 32);
      }
    return warps;
  }

  // All steps, in the order of the pass.
  void run(Args& args, const HostTimeline& time) const {
    const auto kernel = this->kernel<Pass>(plan_);
    Launch how = team(plan_);
    how.grid[2] = unsigned(sizes_.directions);
    Work& work = args.work;
    if (!by_steps()) {
      how.grid[0] = unsigned(plan_.blocks), how.grid[1] = unsigned(plan_.teams);
      how.cooperative = plan_.regime == Regime::grid;
      work.first_step = 0, work.end_step = sizes_.steps;
      work.first_stage = 0, work.end_stage = Pass::kStages;
      launch(kernel, how, args, what_);
      return;
    }
    for (int64_t s = 0; s < sizes_.steps; ++s) {
      // Of two directions, one is at the s-th step from the left, the other from the right.
      const int64_t left = time.alive(s), right = time.alive(sizes_.steps - 1 - s);
      const int64_t own = Pass::kBackward ? right : left;
      const int64_t alive = sizes_.directions == 1 ? own : left > right ? left : right;
      if (alive == 0) continue;
      const int64_t tiles = (alive + work.tile_places - 1) / work.tile_places;
      for (int stage = 0; stage < Pass::kStages; ++stage) {
        share(how, args.products[stage].groups, tiles);
        work.first_step = s, work.end_step = s + 1;
        work.first_stage = stage, work.end_stage = stage + 1;
        launch(kernel, how, args, what_);
      }
    }
  }

  // The product that gives gradients of initial states, with the weights of the first stage.
  void run_initial(InitialArgs<Math>& args) const {
    const Plan plan = initial(plan_);
    args.work.split = plan.cluster;
    Launch how = team(plan);
    how.grid[2] = unsigned(sizes_.directions);
    share(how, args.products[0].groups, plan.tiles);
    launch(kernel<InitialPass<Math>>(plan), how, args, what_);
  }

 private:
  // Asking what is resident takes longer than a launch, so plans are kept. A plan that is kept is
  // one whose kernels have been allowed what it needs.
  Plan planned(const PlanInput& input, const DeviceProperties& device) const {
    const PlanChoice& choice = call_.choice;
    using Key = std::array<int64_t, 13>;
    const Key key = {call_.device,         device.processors,     device.shared_bytes,
                     device.max_cluster,   input.batch,           input.directions,
                     input.stage[0].units, input.stage[0].bricks, input.stage[1].units,
                     choice.regime,        choice.cluster,        choice.unit_blocks,
                     choice.tile_places};
    static std::mutex mutex;
    static std::map<Key, Plan> plans;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = plans.find(key);
    if (known != plans.end()) return known->second;
    Plan plan;
    if (!make_plan(input, choice, plan))
      throw std::runtime_error(
          std::string("fastrnn: ") + what_ + ": the regime " +
          (choice.regime < 0 ? "asked for" : regime_name(Regime(choice.regime))) +
          " cannot run this");
    allow_most(kernel<Pass>(plan), device, what_);
    if constexpr (Pass::kBackward)
      allow_most(kernel<InitialPass<Math>>(initial(plan)), device, what_);
    if (plans.size() > 10000) plans.clear();
    return plans[key] = plan;
  }
  // How the single product of run_initial is shared.
  static Plan initial(Plan plan) {
    if (plan.regime == Regime::tiled) return plan;
    plan.regime = Regime::stepwise, plan.cluster = 1;
    plan.shared_bytes = 2 * plan.partial_bytes;
    return plan;
  }
  bool by_steps() const {
    return plan_.regime == Regime::stepwise || plan_.regime == Regime::tiled;
  }
  Launch team(const Plan& plan) const {
    Launch how;
    how.grid[0] = unsigned(plan.cluster), how.cluster = unsigned(plan.cluster);
    how.threads = kThreads, how.shared_bytes = unsigned(plan.shared_bytes);
    how.stream = call_.stream;
    return how;
  }
  // The blocks of one stage of one step.
  void share(Launch& how, int64_t groups, int64_t tiles) const {
    const bool tiled = plan_.regime == Regime::tiled;
    how.grid[0] = unsigned(tiled ? tiles * plan_.cluster : groups);
    how.grid[1] = unsigned(tiled ? groups : tiles < kMostRows ? tiles : kMostRows);
  }
  template <class P>
  static KernelOf<typename P::Args> kernel(const Plan& plan) {
    if (plan.regime == Regime::tiled) return tiled_kernel<P>();
    if constexpr (has_wide_tiles(Math::kMatrix, P::First::kIn, P::kStages))
      if (plan.wide) return sequence_kernel<P, TileShape<Math, 1, true>, GlobalExchange>();
    if constexpr (most_unit_blocks(kNumberBytes) == 2)
      if (plan.unit_blocks[0] == 2) return sequence<P, TileShape<Math, 2>>(plan.regime);
    return sequence<P, TileShape<Math, 1>>(plan.regime);
  }
  template <class P, class Shape>
  static KernelOf<typename P::Args> sequence(Regime regime) {
    if constexpr (std::is_same_v<P, Pass>)
      if (regime == Regime::processor || regime == Regime::cluster)
        return sequence_kernel<P, Shape, ClusterExchange>();
    return sequence_kernel<P, Shape, GlobalExchange>();
  }

  const Sizes& sizes_;
  const CudaCall& call_;
  const StageSource* const sources_;
  const char* const what_;
  Plan plan_;
  StageSize stages_[kMaxStages];
  Vector16* zeros_ = nullptr;
  int64_t zero_vectors_ = 0;
};

FASTRNN_NAMESPACE_END
