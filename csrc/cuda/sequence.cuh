// The kernel of every regime: a team of blocks goes through steps.
//
// Of each tile of places a stage takes: the product of rows of weights with the tile's states,
// split over k in kWarps parts; their partial sums, through shared memory; and the stage's
// arithmetic, a thread for each unit and place, of which the results go to the exchange.
//
// The parts of k belong to the warps of a block, or, with work.split blocks in a cluster, to those
// of all: each block then reads a share of every state only, multiplies it for the units of all
// blocks of the cluster, and leaves the partial sums in the shared memory of the block whose units
// they are. What a block reads of states in a step is what limits large batches, and above all
// backward, where a state has as many values as there are gates.
//
// Launched once for all steps it is the persistent kernel: weights stay in shared memory. Launched
// for one stage of one step, it is the stepwise one: weights are read where they were packed, and
// the end of the launch is the barrier.
#pragma once

#include "exchange.cuh"
#include "math.cuh"

FASTRNN_NAMESPACE_BEGIN

// kBlocks of 8 units, a group, and kTiles of 8 places: what a block computes at a time.
template <class Math_, int kBlocks_, bool kWide_ = false>
struct TileShape {
  using Math = Math_;
  static constexpr bool kWide = kWide_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kTiles = sequence_tiles(Math::kMatrix, kWide);
  static constexpr int kUnits = 8 * kBlocks, kPlaces = 8 * kTiles;
};

// The product of a group's weights with a tile's states over bricks [begin, end). The weights of
// the first bricks are fetched in prepare(), for the time in which states are still on their way.
// kHeld: if these are all that the warp has, they stay in registers for as long as it is asked for
// the same.
//
// kAhead: bricks of which loads are under way together, as far as registers go.
template <class Math, int kHalves, int kTiles, int kAhead, bool kHeld, bool kShared>
class Multiplication {
  using Result = Sums<Math, kHalves, kTiles>;

 public:
  // weights: from brick `begin` on.
  FASTRNN_DEVICE void prepare(const Vector16* weights, int begin, int end) {
    if (kHeld && weights == weights_ && end - begin <= kAhead) return;
    weights_ = weights, begin_ = begin, end_ = end;
    fetch(begin);
  }

  // Where the calling lane's first vector of a tile lies whose rows begin there.
  static FASTRNN_DEVICE int64_t of_lane(int64_t rows, int64_t row_bytes, int brick) {
    const int lane = threadIdx.x % 32;
    return rows + Result::state_row(0, lane) * row_bytes + brick * kBrickBytes + lane % 4 * 16;
  }
  // states_of_lane: of the first brick.
  FASTRNN_DEVICE void run(const unsigned char* states_of_lane, int64_t row_bytes, Result& sums) {
    const int64_t step = (Result::state_row(1, 0) - Result::state_row(0, 0)) * row_bytes;
    const auto multiply = [&](int brick, bool fetched) {
      const unsigned char* const first = states_of_lane + (brick - begin_) * kBrickBytes;
      Vector16 states[kAhead][Result::kLoads];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (brick + i >= end_) break;
#pragma unroll
        for (int n = 0; n < Result::kLoads; ++n) {
          const unsigned char* p = first + n * step + i * kBrickBytes;
          states[i][n] = kShared ? *(const Vector16*)p : load_exchanged(p);
        }
      }
      if (!fetched) fetch(brick);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (brick + i >= end_) break;
        sums.add(ahead_[i], states[i]);
      }
    };
    // Not in the loop, whose head would wait for whatever is on its way.
    multiply(begin_, true);
    for (int brick = begin_ + kAhead; brick < end_; brick += kAhead) multiply(brick, false);
    sums.finish();
  }

 private:
  FASTRNN_DEVICE void fetch(int brick) {
    const Vector16* from = weights_ + (brick - begin_) * kHalves * 32 + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (brick + i >= end_) break;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) ahead_[i][h] = from[(i * kHalves + h) * 32];
    }
  }

  const Vector16* weights_ = nullptr;
  int begin_ = 0, end_ = 0;
  Vector16 ahead_[kAhead][kHalves];
};

template <class Pass, class Shape, class Exchanging>
class Sequence {
  using Args = typename Pass::Args;
  using Math = typename Pass::Math;
  using S = typename Math::Storage;
  using N = typename Math::Number;
  static constexpr int kUnits = Shape::kUnits, kPlaces = Shape::kPlaces;
  static_assert(kUnits * kPlaces <= kThreads, "a thread for each unit and place");
  // For the next step before the barrier that ends this one; where flags are waited for, what a
  // step needs travels meanwhile.
  static constexpr bool kAsksAhead = Exchanging::kShared && Pass::kStages == 1;

 public:
  // Shared memory: weights of both stages if they are resident, partial sums, states.
  FASTRNN_DEVICE Sequence(const Args& args, unsigned char* shared)
      : p_(args),
        d_(int(blockIdx.z)),
        course_{args.time.steps, (d_ == 1) != Pass::kBackward},
        split_(Exchanging::kShared ? 1 : args.work.split),
        rank_(split_ > 1 ? int(cluster_rank()) : 0),
        part_(rank_ * parts() + int(threadIdx.x / 32) / split_),
        target_(int(threadIdx.x / 32) % split_),
        weights_(shared),
        partial_((N*)(shared + args.work.weight_bytes)),
        exchange_(args, d_, shared + args.work.weight_bytes + 2 * args.work.partial_bytes) {}

  FASTRNN_DEVICE void run() {
    fetch_weights();
    exchange_.begin();
    if (split_ > 1)
      cluster_arrive(), cluster_wait();  // nobody stores to a block that has not begun
    parts_[0] = part_of_warp<0>();
    if constexpr (Pass::kStages == 2) parts_[1] = part_of_warp<1>();
    const Work& work = p_.work;
    [[maybe_unused]] ProductOf<typename Pass::First> product;
    [[maybe_unused]] typename Pass::First unit(p_, d_);
    const int64_t first = work.first_step;
    Step step = {first, moment(first), moment(first + 1), moment(first + 2), 0};
    while (step.index < work.end_step) {
      if constexpr (Pass::kStages == 1) {
        stage<typename Pass::First, 0>(step, product, unit);
      } else {
        if (work.first_stage == 0) stage<typename Pass::First, 0>(step);
        if (work.end_stage == 2) stage<typename Pass::Second, 1>(step);
      }
      step = {step.index + 1, step.next, kAsksAhead ? step.after : moment(step.index + 2),
              kAsksAhead ? moment(step.index + 3) : Moment(), step.now.alive()};
    }
  }

 private:
  // Groups of a block of this cluster.
  FASTRNN_DEVICE int first_group(int stage, int rank) const {
    return (int(blockIdx.x) - rank_ + rank) * p_.products[stage].per_block;
  }
  FASTRNN_DEVICE int groups(int stage, int rank) const {
    const Product& product = p_.products[stage];
    const int left = product.groups - first_group(stage, rank);
    return left < 0 ? 0 : left < product.per_block ? left : product.per_block;
  }
  // Bricks of the first parts of k.
  FASTRNN_DEVICE int bricks(int stage, int parts) const {
    return p_.products[stage].bricks * parts / kWarps;
  }
  FASTRNN_DEVICE int parts() const { return kWarps / split_; }  // of k that this block has

  // A step in the order of the pass, and what this launch has done before. What is read of steps to
  // come is asked for early enough to be there when it is looked at.
  struct Step {
    int64_t index;
    Moment now, next, after;  // after: where it is asked for
    int alive_before;         // places at the step before; none where that was another launch
  };
  FASTRNN_DEVICE Moment moment(int64_t s) const {
    return s < p_.time.steps ? p_.time.moment(course_.step(s)) : Moment();
  }

  // The calling warp's part of a stage's product.
  struct Part {
    int begin, end;   // bricks
    int skipped;      // of its block, before
    Writers writers;  // of its bricks
  };
  template <int kStage>
  FASTRNN_DEVICE Part part_of_warp() const {
    const int begin = bricks(kStage, part_), end = bricks(kStage, part_ + 1);
    return {begin, end, begin - bricks(kStage, rank_ * parts()),
            exchange_.writers(kStage, begin * kBrickBytes, end * kBrickBytes)};
  }

  // Known to the compiler where states go through shared memory.
  FASTRNN_DEVICE bool is_resident() const { return Exchanging::kShared || p_.work.resident; }

  template <class Stage>
  static constexpr int kBrickVectors = Stage::kIn * Shape::kBlocks * 32;

  // The weights of a group of a block of this cluster, from this block's first brick on. In shared
  // memory those of the second stage follow the first's.
  template <class Stage, int kStage>
  FASTRNN_DEVICE const Vector16* weights(int rank, int group) const {
    const Product& product = p_.products[kStage];
    const int begin = bricks(kStage, rank_ * parts());
    if (!is_resident()) {
      const int64_t brick = int64_t(first_group(kStage, rank) + group) * product.bricks + begin;
      return product.weights[d_] + brick * kBrickVectors<Stage>;
    }
    const int own = bricks(kStage, (rank_ + 1) * parts()) - begin;
    int64_t before = int64_t(rank * product.per_block + group) * own * kBrickVectors<Stage>;
    if constexpr (kStage == 1) {
      const int first = bricks(0, (rank_ + 1) * parts()) - bricks(0, rank_ * parts());
      before +=
          int64_t(split_) * p_.products[0].per_block * first * kBrickVectors<typename Pass::First>;
    }
    return (const Vector16*)weights_ + before;
  }

  FASTRNN_DEVICE void fetch_weights() {
    if (!is_resident()) return;
    fetch<typename Pass::First, 0>();
    if constexpr (Pass::kStages == 2) fetch<typename Pass::Second, 1>();
    sync_block();
  }
  template <class Stage, int kStage>
  FASTRNN_DEVICE void fetch() {
    const Product& product = p_.products[kStage];
    const int begin = bricks(kStage, rank_ * parts());
    const int count = (bricks(kStage, (rank_ + 1) * parts()) - begin) * kBrickVectors<Stage>;
    for (int rank = 0; rank < split_; ++rank)
      for (int g = 0; g < groups(kStage, rank); ++g) {
        const int64_t brick = int64_t(first_group(kStage, rank) + g) * product.bricks + begin;
        const Vector16* from = product.weights[d_] + brick * kBrickVectors<Stage>;
        Vector16* to = const_cast<Vector16*>(weights<Stage, kStage>(rank, g));
        for (int i = threadIdx.x; i < count; i += kThreads) to[i] = from[i];
      }
  }

  template <class Stage>
  static constexpr int kAhead = bricks_ahead(Math::kMatrix, Shape::kWide,
                                             Stage::kIn* Shape::kBlocks, Pass::kStages, sizeof(N));
  // Weights of two stages would need twice the registers.
  template <class Stage>
  using ProductOf = Multiplication<Math, Stage::kIn * Shape::kBlocks, Shape::kTiles, kAhead<Stage>,
                                   Pass::kStages == 1, Exchanging::kShared>;

  template <class Stage, int kStage>
  FASTRNN_DEVICE void stage(const Step& step) {
    ProductOf<Stage> product;
    Stage unit(p_, d_);
    stage<Stage, kStage>(step, product, unit);
  }
  template <class Stage, int kStage>
  FASTRNN_DEVICE void stage(const Step& step, ProductOf<Stage>& product, Stage& unit) {
    bool arrived = false;
    if (groups(kStage, 0) > 0)
      for (Tile tile = first_tile(); has_rows(tile, step.now.alive()); tile = next(tile)) {
        visit(tile);
        arrived = !has_rows(next(tile), step.now.alive());
        run_tile<Stage, kStage>(step, tile, arrived, product, unit);
      }
    if (!arrived) exchange_.arrive();
    exchange_.wait_for_all();
  }

  // Tiles without rows come after those that have some.
  FASTRNN_DEVICE bool has_rows(const Tile& tile, int alive) const {
    return tile.index < p_.work.tiles && int64_t(tile.index) * kPlaces < alive;
  }

  // This thread's place in the tile; known already where the team has one tile.
  FASTRNN_DEVICE void visit(const Tile& tile) {
    if (tile.index == visited_) return;
    const int place = tile.index * kPlaces + int(threadIdx.x) / kUnits;
    visited_ = tile.index;
    place_ = place < p_.time.batch ? p_.time.place(place) : Place{place};
    // Looked at, and so waited for, here, where nothing else is on its way.
    if (place_.batch_row < 0 || place_.length < 0) trap();
  }

  // last: of the tiles of this stage. own: this thread's; it may have been loaded a step before.
  template <class Stage, int kStage>
  FASTRNN_DEVICE void run_tile(const Step& step, const Tile& tile, bool last,
                               ProductOf<Stage>& product_of_warp, Stage& own) {
    constexpr bool kLastStage = kStage == Pass::kStages - 1;
    constexpr int kNext = kLastStage ? 0 : kStage + 1, kHalves = Stage::kIn * Shape::kBlocks;
    const Product& product = p_.products[kStage];
    const Exchange& out = p_.exchanges[kNext];
    const int64_t row_bytes = p_.exchanges[kStage].row_bytes;
    const Part& part = parts_[kStage];

    // This thread's unit of a group, and its place.
    const int u = threadIdx.x % kUnits, m = threadIdx.x / kUnits;
    const bool alive = m < kPlaces && place_.index < step.now.alive();
    // What a tile begins with has been there before this launch.
    const bool fed_here =
        kStage == 0 ? has_rows(tile, step.alive_before) : p_.work.first_stage == 0;
    const int64_t from = computed(ProductOf<Stage>::of_lane(
        exchange_.offset(kStage, step.index, tile), row_bytes, part.begin));
    const int64_t row =
        exchange_.offset(kNext, step.index + kLastStage, tile) / int64_t(sizeof(S)) +
        m * (out.row_bytes / int64_t(sizeof(S)));
    const int64_t flag = computed(exchange_.flag(kNext, tile));

    // Blocks of a cluster take the same turns: the first one has the most groups.
    const int turns = groups(kStage, 0);
    for (int g = 0; g < turns; ++g) {
      const int unit = (first_group(kStage, rank_) + g) * kUnits + u;
      const bool active = alive && unit < product.units;
      const bool some_active = alive && unit / 8 * 8 < product.units;  // of the eight units
      const int64_t to = computed(row + exchange_index(unit, 0, out.width));
      const bool multiplies = g < groups(kStage, target_);
      product_of_warp.prepare(
          weights<Stage, kStage>(target_, g) + int64_t(part.skipped) * kBrickVectors<Stage>,
          part.begin, multiplies ? part.end : part.begin);
      if (active && asked_ != step.index) own.load(step.now, step.next, place_, unit);
      if (g == 0 && fed_here)
        exchange_.wait(kStage, tile, part.writers, unsigned(step.index + kStage));
      N* const partial = partial_ + turn_ * (p_.work.partial_bytes / int64_t(sizeof(N)));
      if (multiplies) {
        Sums<Math, kHalves, Shape::kTiles> sums;
        product_of_warp.run(exchange_.rows(kStage) + from, row_bytes, sums);
        if (split_ > 1)
          put<Stage::kIn>(sums, remote(partial, target_), part_);
        else
          put<Stage::kIn>(sums, partial, part_);
      }
      // Sums of the next turn go elsewhere, so that this is the only barrier of a turn.
      if (split_ > 1)
        cluster_arrive(), cluster_wait();
      else
        sync_block();
      turn_ ^= 1;
      N values[Stage::kOut ? Stage::kOut : 1] = {};
      if (active) {
        N total[Stage::kIn];
        take<Stage::kIn>(partial, u, m, total);
        own.finish(total, values);
      }
#pragma unroll
      for (int k = 0; k < Stage::kOut; ++k)
        exchange_.store((S*)exchange_.rows(kNext) + to + k * kExchangeStep,
                        Math::exchanged(values[k]), active, some_active);
      // Others wait for those values, after the last turn. What is stored behind the flag is on its
      // way while they compute.
      if (g + 1 == turns) {
        exchange_.publish(flag, unsigned(step.index + 1));
        if (last) exchange_.arrive();
      }
      if (active) own.store();
      // If the thread has one unit and place only.
      if (kAsksAhead && turns == 1 && p_.work.team_tiles == 1) {
        asked_ = step.index + 1;
        if (place_.index < step.next.alive() && m < kPlaces && unit < product.units)
          own.load(step.next, step.after, place_, unit);
      }
    }
  }

  // Partial sums lie by part of k, half-tile, tile, place of it, row. Places are permuted, by the
  // block of units too, so that the stores of put() and the loads of take() meet all banks.
  static FASTRNN_DEVICE int in_tile(int place, int unit_block) {
    return place ^ (place / 4) ^ (unit_block % 2 * 2);
  }

  template <int kGates, int kHalves>
  static FASTRNN_DEVICE void put(const Sums<Math, kHalves, Shape::kTiles>& sums, N* partial,
                                 int part) {
    const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int n = 0; n < Shape::kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          partial[((part * kHalves + h) * Shape::kTiles + n) * 64 +
                  in_tile(2 * q + e, h / kGates) * 8 + r] = sums.total(h, n, e);
  }
  template <int kGates>
  static FASTRNN_DEVICE void take(const N* partial, int u, int m, N* total) {
    constexpr int kHalves = kGates * Shape::kBlocks;
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const int half = u / 8 * kGates + g;
      const N* p =
          partial + (half * Shape::kTiles + m / 8) * 64 + in_tile(m % 8, u / 8) * 8 + u % 8;
      N sum = p[0];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += p[w * kHalves * Shape::kTiles * 64];
      total[g] = sum;
    }
  }

  const Args& p_;
  const int d_;
  const Course course_;
  const int split_, rank_;
  // Of k, the part that the calling warp has; and the block of the cluster for whose units.
  const int part_, target_;
  Part parts_[Pass::kStages];
  int turn_ = 0;
  int64_t asked_ = -1;  // step of which this thread has asked for all that it needs
  int visited_ = -1;    // tile
  Place place_;         // of this thread in it
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
