// Forward over a whole sequence, generic over the cell.
//
// A thread owns a rectangle of batch rows and units. For a chunk of steps it multiplies its rows
// of x into the input part of its units' gates, then goes through the steps: the product with h
// leaves a tile of gates in the first-level cache, the cell's functor turns it into saved values,
// h and c. h_{t-1} is read where it was written, in y; a pointer to zeros stands for what a reset
// or the lack of an initial state makes zero. T is the type of values in memory; what stays inside
// the call, c among it, is in the type of the arithmetic.
#pragma once

#include <stdlib.h>

#include "../core/cells/gru.h"
#include "../core/cells/lstm.h"
#include "../core/cells/vanilla.h"
#include "plan.h"
#include "timeline.h"

FASTRNN_NAMESPACE_BEGIN

template <class Cell>
struct StageShape {
  // Gates of the product with h; a cell in two stages has its candidate in a second product.
  static constexpr int first_gates() {
    if constexpr (Cell::kTwoStage) return Cell::kFirstGates;
    return Cell::kGates;
  }
  static constexpr int kFirst = first_gates();
  static constexpr int kInputVectors = unit_vectors(Cell::kGates);
  static constexpr int kFirstVectors = unit_vectors(kFirst);
  // Units change hands between threads in blocks that are whole panels of every product.
  static constexpr int kBlockVectors = Cell::kTwoStage ? 4 : kInputVectors;
};

// What all threads of a direction share.
template <class Cell, class T>
struct ForwardShared {
  using Shape = StageShape<Cell>;
  using C = Compute<T>;
  static constexpr int kG = Cell::kGates;

  Operand<T, kG, Shape::kInputVectors> input;
  Operand<T, Shape::kFirst, Shape::kFirstVectors> recurrent;
  Operand<T, 1, 4> candidate;   // two stages: W_hn
  Operand<T, 1, 4> projection;  // W_hr
  C* chunk = nullptr;           // (rows of a chunk, S*H) input part of the gates
  C* state = nullptr;           // (B, H) c: the initial one, or where none are kept, the last
  T* mid = nullptr;             // (B, H) input of the second stage or of the projection
  T* zeros = nullptr;           // (max(H, R))
  C* zero_state = nullptr;      // (H)

  // The weights, with room in `panels` for their packed form if there is an arena for it.
  FASTRNN_ONCE void set_up_weights(const Forward<T>& p, int direction, Arena* panels) {
    const int64_t H = p.hidden, R = p.output, I = input_depth(p);
    const Weights<T>& w = p.weights[direction];
    input.shape = {H, I};
    input.matrix = {w.w_ih, H * I, I, 1};
    input.bias = w.b_ih;
    input.bias_gate = H;
    recurrent.shape = {H, R};
    recurrent.matrix = {w.w_hh, H * R, R, 1};
    recurrent.bias = w.b_hh;
    recurrent.bias_gate = H;
    if (Cell::kTwoStage) {
      candidate.shape = {H, H};
      candidate.matrix = {w.w_hh + 2 * H * H, 0, H, 1};
      candidate.bias = w.b_hh ? w.b_hh + 2 * H : nullptr;
    }
    if (w.w_hr) {
      projection.shape = {R, H};
      projection.matrix = {w.w_hr, 0, H, 1};
    }
    if (!panels) return;
    for_each_operand(
        [&](auto& operand) { operand.panels = panels->template take<C>(operand.shape.size()); });
  }

  FASTRNN_ONCE void set_up(const Forward<T>& p, int direction, int64_t chunk_steps, bool pack,
                           Arena& arena) {
    if (p.packed[direction]) {
      Arena packed((char*)p.packed[direction]);
      set_up_weights(p, direction, &packed);
    } else {
      set_up_weights(p, direction, pack ? &arena : nullptr);
    }
    const int64_t H = p.hidden, R = p.output;
    if (Cell::kTwoStage || p.weights[direction].w_hr) mid = arena.take<T>(p.batch * H);
    chunk = arena.take<C>(chunk_steps * p.batch * Cell::kSaved * H);
    if (Cell::kCellState) state = arena.take<C>(p.batch * H);
    zeros = arena.take<T>(H > R ? H : R);
    if (Cell::kCellState) zero_state = arena.take<C>(H);
  }

  // The operands that this cell has.
  template <class Function>
  void for_each_operand(const Function& function) {
    if (input.matrix.data) function(input);
    function(recurrent);
    if (Cell::kTwoStage) function(candidate);
    if (projection.matrix.data) function(projection);
  }
};

// Arrays of row pointers, one set per thread.
template <class T>
struct ForwardPointers {
  using C = Compute<T>;
  const T** x;
  C** x_gates;
  const T** h_prev;
  const C** c_prev;
  T **mid, **saved, **h;
  C **gates, **c;

  FASTRNN_ONCE ForwardPointers(int64_t batch, int64_t chunk_rows, Arena& arena)
      : x(arena.take<const T*>(chunk_rows)),
        x_gates(arena.take<C*>(chunk_rows)),
        h_prev(arena.take<const T*>(batch)),
        c_prev(arena.take<const C*>(batch)),
        mid(arena.take<T*>(batch)),
        saved(arena.take<T*>(batch)),
        h(arena.take<T*>(batch)),
        gates(arena.take<C*>(batch)),
        c(arena.take<C*>(batch)) {}
};

template <class Cell, class T>
class ForwardPass {
  using C = Compute<T>;
  using V = Pack<C>;
  using Shape = StageShape<Cell>;
  static constexpr int kWidth = V::kWidth;
  static constexpr int kG = Cell::kGates;
  static constexpr int kS = Cell::kSaved;

 public:
  ForwardPass(const Forward<T>& args, int direction, const Timeline& timeline,
              ForwardShared<Cell, T>& shared, const ForwardPointers<T>& pointers, Part part,
              int64_t chunk_steps)
      : p_(args),
        d_(direction),
        H_(args.hidden),
        R_(args.output),
        projected_(args.weights[direction].w_hr != nullptr),
        width_(kS * H_ + (projected_ ? R_ : 0)),
        timeline_(timeline),
        course_{args.steps, direction == 1},
        rows_{timeline, part.first_row(), part.row_stride()},
        shared_(shared),
        at_(pointers),
        part_(part),
        chunk_steps_(chunk_steps),
        units_(part.units(H_, Shape::kBlockVectors * kWidth)),
        outputs_(projected_ ? part.units(R_, 4 * kWidth) : units_) {}

  // below: of the layer that computes x at the same time, or null. own: of this layer, or null.
  void run(const Progress* below, Progress* own) {
    pack();
    start_states();
    for (int64_t s0 = 0; s0 < p_.steps; s0 += chunk_steps_) {
      const int64_t s1 = s0 + chunk_steps_ < p_.steps ? s0 + chunk_steps_ : p_.steps;
      if (below) below->wait_for(s1);
      multiply_input(s0, s1);
      for (int64_t s = s0; s < s1; ++s) step(s, s0);
      if (own) own->publish(s1);
    }
    finish();
  }

 private:
  void pack() {
    if (!p_.packed[d_]) {
      if (shared_.input.matrix.data) part_.pack(shared_.input, units_);
      part_.pack(shared_.recurrent, units_);
      if (Cell::kTwoStage) part_.pack(shared_.candidate, units_);
      if (projected_) part_.pack(shared_.projection, outputs_);
    }
    if (part_.team.rank == 0) {
      memset(shared_.zeros, 0, (H_ > R_ ? H_ : R_) * sizeof(T));
      if (Cell::kCellState) memset(shared_.zero_state, 0, H_ * sizeof(C));
    }
    part_.team.wait();
  }
  void start_states() {
    if (!Cell::kCellState) return;
    const int64_t count = rows_.count(p_.batch);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = rows_.batch_row(i);
      const T* c0 = p_.c0 ? p_.c0 + (d_ * p_.batch + b) * H_ : nullptr;
      for_own_units([&](int64_t j, int n) {
        (c0 ? V::load(c0 + j, n) : zero<V>()).store(state_row(b) + j, n);
      });
    }
  }
  template <class Function>
  void for_own_units(const Function& function) const {
    for (int64_t j = units_.begin; j < units_.end; j += kWidth)
      function(j, int(units_.end - j < kWidth ? units_.end - j : kWidth));
  }

  T* reserve_row(int64_t t, int64_t b) const {
    return p_.reserve + (d_ * p_.rows + timeline_.row(t, b)) * width_;
  }
  C* gates_row(int64_t s, int64_t s0, int64_t i) const {
    return shared_.chunk + ((s - s0) * p_.batch + rows_.index(i)) * kS * H_;
  }
  T* y_row(int64_t t, int64_t b) const {
    return p_.y + (timeline_.row(t, b) * p_.directions + d_) * R_;
  }
  C* c_row(int64_t t, int64_t b) const {
    return p_.cell_states + (timeline_.row(t, b) * p_.directions + d_) * H_;
  }
  T* h_n_row(int64_t b) const { return p_.h_n + (d_ * p_.batch + b) * R_; }
  T* c_n_row(int64_t b) const { return p_.c_n + (d_ * p_.batch + b) * H_; }
  const T* h0_row(int64_t b) const {
    return p_.h0 ? p_.h0 + (d_ * p_.batch + b) * R_ : shared_.zeros;
  }
  C* state_row(int64_t b) const { return shared_.state + b * H_; }

  void multiply_input(int64_t s0, int64_t s1) {
    int64_t n = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = course_.step(s);
      const int64_t alive = rows_.alive(t);
      for (int64_t i = 0; i < alive; ++i, ++n) {
        const int64_t b = rows_.batch_row(i);
        at_.x[n] = p_.batch_sizes ? p_.x + timeline_.row(t, b) * p_.input
                                  : p_.x + t * p_.x_step + b * p_.x_row;
        at_.x_gates[n] = gates_row(s, s0, i);
      }
    }
    if (!shared_.input.matrix.data) return take_gates(n);
    for_each_tile(shared_.input, Part::panels(shared_.input, units_), at_.x, n,
                  [&](int64_t i, int64_t j, int valid, const Results<C>& product) {
                    C* gates = at_.x_gates[i] + j;
                    for (int g = 0; g < kG; ++g)
                      product[g].store(gates + Cell::kSlot[g] * H_, valid);
                  });
  }

  // Where x is W_ih x already, what is left is the bias.
  void take_gates(int64_t rows) {
    const T* bias = p_.weights[d_].b_ih;
    const int64_t first = p_.input ? d_ * kG * H_ : 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int g = 0; g < kG; ++g) {
        const T* from = at_.x[i] + first + g * H_;
        C* to = at_.x_gates[i] + Cell::kSlot[g] * H_;
        for_own_units([&](int64_t j, int n) {
          V value = p_.input ? V::load(from + j, n) : zero<V>();
          if (bias) value = value + V::load(bias + g * H_ + j, n);
          value.store(to + j, n);
        });
      }
  }

  void step(int64_t s, int64_t s0) {
    const int64_t t = course_.step(s), alive = rows_.alive(t);
    for (int64_t i = 0; i < alive; ++i) {
      const int64_t b = rows_.batch_row(i), before = course_.previous(t);
      const bool first = t == course_.first(rows_.length(i));
      const bool reset = timeline_.reset(t, b);
      at_.gates[i] = gates_row(s, s0, i);
      if (p_.reserve) at_.saved[i] = reserve_row(t, b);
      at_.h_prev[i] = reset ? shared_.zeros : first ? h0_row(b) : y_row(before, b);
      at_.h[i] = y_row(t, b);
      if (shared_.mid) at_.mid[i] = shared_.mid + rows_.index(i) * H_;
      if (Cell::kCellState) {
        at_.c[i] = p_.cell_states ? c_row(t, b) : state_row(b);
        at_.c_prev[i] = reset                      ? shared_.zero_state
                        : first || !p_.cell_states ? state_row(b)
                                                   : c_row(before, b);
      }
    }
    if constexpr (Cell::kTwoStage) {
      first_stage(alive);
      part_.meet();
      second_stage(alive);
    } else {
      one_stage(alive);
    }
    if (projected_) {
      part_.meet();
      project(alive);
    }
    part_.meet();
  }

  void one_stage(int64_t alive) {
    const auto& op = shared_.recurrent;
    for_each_tile(op, Part::panels(op, units_), at_.h_prev, alive,
                  [&](int64_t i, int64_t j, int n, const Results<C>& product) {
                    V x[kG], r[kG], saved[kS], h, c;
                    for (int g = 0; g < kG; ++g) {
                      x[g] = V::load(at_.gates[i] + Cell::kSlot[g] * H_ + j, n);
                      r[g] = product[g];
                    }
                    const V c_prev = Cell::kCellState ? V::load(at_.c_prev[i] + j, n) : zero<V>();
                    const V h_prev = Cell::kDirect ? V::load(at_.h_prev[i] + j, n) : zero<V>();
                    Cell::forward(x, r, h_prev, c_prev, saved, h, c);
                    if (p_.reserve)
                      for (int k = 0; k < kS; ++k) saved[k].store(at_.saved[i] + k * H_ + j, n);
                    if (Cell::kCellState) c.store(at_.c[i] + j, n);
                    h.store((projected_ ? at_.mid[i] : at_.h[i]) + j, n);
                  });
  }

  void first_stage(int64_t alive) {
    const auto& op = shared_.recurrent;
    for_each_tile(op, Part::panels(op, units_), at_.h_prev, alive,
                  [&](int64_t i, int64_t j, int n, const Results<C>& product) {
                    C* gates = at_.gates[i] + j;
                    const V x[2] = {V::load(gates, n), V::load(gates + H_, n)};
                    const V r[2] = {product[0], product[1]};
                    V saved[2], mid;
                    Cell::forward_gates(x, r, V::load(at_.h_prev[i] + j, n), saved, mid);
                    saved[1].store(gates + H_, n);
                    mid.store(at_.mid[i] + j, n);
                    if (p_.reserve)
                      for (int k = 0; k < 2; ++k) saved[k].store(at_.saved[i] + k * H_ + j, n);
                  });
  }

  void second_stage(int64_t alive) {
    const auto& op = shared_.candidate;
    for_each_tile(op, Part::panels(op, units_), at_.mid, alive,
                  [&](int64_t i, int64_t j, int n, const Results<C>& product) {
                    const C* gates = at_.gates[i] + j;
                    V candidate, h;
                    Cell::forward_candidate(V::load(gates + 2 * H_, n), product[0],
                                            V::load(gates + H_, n), V::load(at_.h_prev[i] + j, n),
                                            candidate, h);
                    if (p_.reserve) candidate.store(at_.saved[i] + 2 * H_ + j, n);
                    h.store(at_.h[i] + j, n);
                  });
  }

  void project(int64_t alive) {
    const auto& op = shared_.projection;
    for_each_tile(op, Part::panels(op, outputs_), at_.mid, alive,
                  [&](int64_t i, int64_t j, int n, const Results<C>& product) {
                    product[0].store(at_.h[i] + j, n);
                    if (p_.reserve) product[0].store(at_.saved[i] + kS * H_ + j, n);
                  });
  }

  // Last states, and zeros beyond the ends of sequences.
  void finish() {
    const int64_t count = rows_.count(p_.batch);
    const int64_t out = (outputs_.end - outputs_.begin) * sizeof(T);
    const int64_t own = (units_.end - units_.begin) * sizeof(C);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = rows_.batch_row(i), length = rows_.length(i), t = course_.last(length);
      if (out > 0)
        memcpy(h_n_row(b) + outputs_.begin, (length ? y_row(t, b) : h0_row(b)) + outputs_.begin,
               out);
      if (Cell::kCellState) {
        const C* c = length && p_.cell_states ? c_row(t, b) : state_row(b);
        for_own_units([&](int64_t j, int n) { V::load(c + j, n).store(c_n_row(b) + j, n); });
      }
      if (p_.batch_sizes) continue;
      for (int64_t beyond = length; beyond < p_.steps; ++beyond) {
        if (out > 0) memset(y_row(beyond, b) + outputs_.begin, 0, out);
        if (Cell::kCellState && p_.cell_states && own > 0)
          memset(c_row(beyond, b) + units_.begin, 0, own);
      }
    }
  }

  const Forward<T>& p_;
  const int d_;
  const int64_t H_, R_;
  const bool projected_;
  const int64_t width_;  // of a row of the reserve
  const Timeline& timeline_;
  const Course course_;
  const Rows rows_;
  ForwardShared<Cell, T>& shared_;
  const ForwardPointers<T>& at_;
  const Part part_;
  const int64_t chunk_steps_;
  const Range units_;    // own units
  const Range outputs_;  // own values of h: the units, or a share of the projection's
};

// Packs the weights of a direction, for calls with Forward::packed, and returns the bytes it takes;
// with out null it only counts them. Of the arguments it reads weights and sizes.
template <class Cell, class T>
int64_t pack_weights(const Forward<T>& args, int direction, Compute<T>* out) {
  ForwardShared<Cell, T> shared;
  Arena arena((char*)out);
  shared.set_up_weights(args, direction, &arena);
  if (out) shared.for_each_operand([](auto& operand) { operand.pack(0, operand.shape.panels()); });
  return arena.used();
}

// A layer: the memory of its forward, and what each thread does of it.
template <class Cell, class T>
class ForwardLayer {
 public:
  FASTRNN_ONCE static Plan plan(const Forward<T>& args, int threads) {
    const int64_t H = args.hidden, R = args.output;
    const Work work = {Cell::kGates * H * R,
                       1 + Cell::kTwoStage + (args.weights[0].w_hr != nullptr),
                       StageShape<Cell>::kBlockVectors * Pack<Compute<T>>::kWidth,
                       Cell::kGates * H * input_depth(args), false};
    return make_plan<T>(args, work, threads);
  }

  // Returns false when there is no memory for the workspace. most_steps: of a chunk.
  FASTRNN_ONCE bool set_up(const Forward<T>& args, const Plan& plan, int64_t most_steps) {
    args_ = &args;
    split_ = plan.split;
    chunk_steps_ = steps_of_chunk(args);
    if (chunk_steps_ > most_steps) chunk_steps_ = most_steps;
    const int64_t H = args.hidden, R = args.output;
    const bool pack = packing_pays(args.rows, R > input_depth(args) ? R : input_depth(args));
    const auto prepare = [&](Arena& arena) {
      for (int d = 0; d < args.directions; ++d)
        shared_[d].set_up(args, d, chunk_steps_, pack, arena);
    };
    Arena measured(nullptr);
    Timeline(args, measured);
    prepare(measured);
    common_ = measured.used();
    ForwardPointers<T>(args.batch, chunk_steps_ * args.batch, measured);
    per_thread_ = measured.used() - common_;
    workspace_.allocate(common_ + per_thread_ * plan.threads);
    if (!workspace_.data()) return false;

    const int64_t rows = args.rows * args.directions;
    prefer_huge_pages(args.y, rows * R * int64_t(sizeof(T)));
    if (args.cell_states)
      prefer_huge_pages(args.cell_states, rows * H * int64_t(sizeof(Compute<T>)));
    if (args.reserve) prefer_huge_pages(args.reserve, rows * width() * int64_t(sizeof(T)));

    Arena arena(workspace_.data());
    timeline_ = Timeline(args, arena);
    prepare(arena);
    return true;
  }

  // The part of a thread of the region that set_up's plan is for.
  FASTRNN_ONCE void run(int rank, int size, Crowd& crowd, const Progress* below = nullptr,
                        Progress* own = nullptr) {
    Arena arena(workspace_.data() + common_ + per_thread_ * rank);
    const ForwardPointers<T> pointers(args_->batch, chunk_steps_ * args_->batch, arena);
    int64_t waited = 0;
    const Stopwatch watch(size);
    const Assignment job = assign(args_->directions, rank, size, barriers_, &waited);
    for (int d = job.first_direction; d <= job.last_direction; ++d)
      ForwardPass<Cell, T>(*args_, d, timeline_, shared_[d], pointers, Part{split_, job.team},
                           chunk_steps_)
          .run(below, own);
    watch.stop(end_, waited, crowd);
  }

 private:
  int64_t width() const {
    return Cell::kSaved * args_->hidden + (args_->weights[0].w_hr ? args_->output : 0);
  }

  // A chunk's gates should still be in the cache when the steps come to them; but a chunk reads all
  // weights of the input, so it should not be much smaller than those.
  static int64_t steps_of_chunk(const Forward<T>& args) {
    constexpr int64_t kLeast = 512 << 10, kMost = 4 << 20;
    const int64_t weight_bytes =
        Cell::kGates * args.hidden * input_depth(args) * int64_t(sizeof(T));
    const int64_t bytes = weight_bytes < kLeast  ? kLeast
                          : weight_bytes > kMost ? kMost
                                                 : weight_bytes;
    const int64_t step_bytes =
        args.batch * Cell::kSaved * args.hidden * int64_t(sizeof(Compute<T>));
    const int64_t steps = bytes / (step_bytes > 0 ? step_bytes : 1);
    return steps < 1 ? 1 : steps > args.steps ? args.steps : steps;
  }

  const Forward<T>* args_ = nullptr;
  Split split_ = Split::rows;
  int64_t chunk_steps_ = 0, common_ = 0, per_thread_ = 0;
  Workspace workspace_;
  Timeline timeline_;
  ForwardShared<Cell, T> shared_[2];
  Barrier barriers_[2], end_;
};

// Returns false when there is no memory for the workspace.
template <class Cell, class T>
bool forward(const Forward<T>& args, int threads, Crowd& crowd) {
  const Plan plan = ForwardLayer<Cell, T>::plan(args, threads);
  ForwardLayer<Cell, T> layer;
  if (!layer.set_up(args, plan, args.steps)) return false;
#pragma omp parallel num_threads(plan.threads) if (plan.threads > 1)
  layer.run(thread_rank(), team_size(), crowd);
  return true;
}

FASTRNN_NAMESPACE_END
