// Backpropagation through time, generic over the cell.
//
// The steps in reverse: gradient of h from above and, through W_hh, from the next step; the
// cell's functor turns it into gradients of the pre-activations (da), over the saved values where
// those are not needed again. The states that entered each step are computed again from the
// reserve. Last come the products over all rows: gradients of weights, biases and input.
// The ownership of rows and units, the pointers to zeros and the two types are as in forward.h: da
// and the states are stored as T, the products' inputs; dc and what bypasses the products is not.
#pragma once

#include "../core/cells/gru.h"
#include "../core/cells/lstm.h"
#include "../core/cells/vanilla.h"
#include "gradients.h"
#include "plan.h"
#include "timeline.h"

FASTRNN_NAMESPACE_BEGIN

template <class Cell, class T>
struct BackwardShared {
  using C = Compute<T>;
  // Slots of da that went through W_hh: all of them, but for the candidate of a second stage and
  // for the input part of the candidate of the reset-after GRU, which come last.
  static constexpr int kThrough = Cell::kTwoStage ? Cell::kGates - 1 : Cell::kGates;

  Operand<T, 1, 4> recurrent;   // da -> dh_{t-1}
  Operand<T, 1, 4> candidate;   // two stages: da_n -> d(r h)
  Operand<T, 1, 4> projection;  // dh -> d(o tanh c)
  C* carry = nullptr;           // (B, R) grad_h_n, then what reaches h_{t-1} directly
  C* dc = nullptr;              // (B, H) grad_c_n, then gradients of c
  C* c0 = nullptr;              // (B, H), null for zeros
  T* zeros = nullptr;           // (S*H)
  C* zero_state = nullptr;      // (H)
  RowValues<T> values;

  FASTRNN_ONCE void set_up(const Backward<T>& p, int direction, Arena& arena) {
    const int64_t H = p.hidden, R = p.output;
    const Weights<T>& w = p.weights[direction];
    const int64_t width = Cell::kSaved * H;
    const int64_t reserved = width + (w.w_hr ? R : 0);
    values.da_width = p.donated ? reserved : width;
    values.da =
        p.donated ? p.reserve + direction * p.rows * reserved : arena.take<T>(p.rows * width);
    values.h_prev = arena.take<T>(p.rows * R);
    if (Cell::kTwoStage || w.w_hr) values.mid = arena.take<T>(p.rows * H);
    if (w.w_hr) values.dh = arena.take<T>(p.rows * R);
    recurrent.shape = {R, kThrough * H};
    recurrent.matrix = {w.w_hh, 0, 1, R};
    // One step and no initial state that wants a gradient: nothing goes through W_hh.
    if (p.steps > 1 || p.grad_h0) recurrent.panels = arena.take<C>(recurrent.shape.size());
    if (Cell::kTwoStage) {
      candidate.shape = {H, H};
      candidate.matrix = {w.w_hh + 2 * H * H, 0, 1, H};
      candidate.panels = arena.take<C>(candidate.shape.size());
    }
    if (w.w_hr) {
      projection.shape = {H, R};
      projection.matrix = {w.w_hr, 0, 1, H};
      projection.panels = arena.take<C>(projection.shape.size());
    }
    carry = arena.take<C>(p.batch * R);
    if (Cell::kCellState) dc = arena.take<C>(p.batch * H);
    if (p.c0) c0 = arena.take<C>(p.batch * H);
    zeros = arena.take<T>(Cell::kSaved * H);
    zero_state = arena.take<C>(H);
  }
};

template <class T>
struct BackwardPointers {
  using C = Compute<T>;
  const T **a, **saved, **h_prev;
  const C **c_prev, **carry_in, **dc_in;
  int64_t* row;  // row index of each own batch row at the step

  FASTRNN_ONCE BackwardPointers(int64_t batch, Arena& arena)
      : a(arena.take<const T*>(batch)),
        saved(arena.take<const T*>(batch)),
        h_prev(arena.take<const T*>(batch)),
        c_prev(arena.take<const C*>(batch)),
        carry_in(arena.take<const C*>(batch)),
        dc_in(arena.take<const C*>(batch)),
        row(arena.take<int64_t>(batch)) {}
};

template <class Cell, class T>
class BackwardPass {
  using C = Compute<T>;
  using V = Pack<C>;
  static constexpr int kWidth = V::kWidth;
  static constexpr int kS = Cell::kSaved;
  static constexpr int64_t kBlock = 4 * kWidth;  // units of a panel

 public:
  BackwardPass(const Backward<T>& args, int direction, const Timeline& timeline,
               BackwardShared<Cell, T>& shared, const BackwardPointers<T>& pointers, Part part)
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
        units_(part.units(H_, kBlock)),
        outputs_(part.units(R_, kBlock)) {}

  void run() {
    pack();
    start_states();
    restore_states();
    for (int64_t s = p_.steps - 1; s >= 0; --s) step(course_.step(s));
    finish();
    part_.team.wait();
  }

 private:
  void pack() {
    part_.pack(shared_.recurrent, outputs_);
    if (Cell::kTwoStage) part_.pack(shared_.candidate, units_);
    if (projected_) part_.pack(shared_.projection, units_);
    if (part_.team.rank == 0) {
      memset(shared_.zeros, 0, kS * H_ * sizeof(T));
      memset(shared_.zero_state, 0, H_ * sizeof(C));
    }
    part_.team.wait();
  }

  int64_t row(int64_t t, int64_t b) const { return timeline_.row(t, b); }
  int64_t column_row(int64_t t, int64_t b) const { return row(t, b) * p_.directions + d_; }
  const T* saved_row(int64_t t, int64_t b) const {
    return p_.reserve + (d_ * p_.rows + row(t, b)) * width_;
  }
  T* da_row(int64_t t, int64_t b) const {
    return shared_.values.da + row(t, b) * shared_.values.da_width;
  }
  T* h_prev_row(int64_t t, int64_t b) const { return shared_.values.h_prev + row(t, b) * R_; }
  int64_t state_row(int64_t b) const { return d_ * p_.batch + b; }
  const C* c_row(int64_t t, int64_t b) const { return p_.cell_states + column_row(t, b) * H_; }
  C* carry_row(int64_t b) const { return shared_.carry + b * R_; }
  C* dc_row(int64_t b) const { return shared_.dc + b * H_; }

  const C* c_before(int64_t t, int64_t b, int64_t length) const {
    if (timeline_.reset(t, b)) return shared_.zero_state;
    if (t != course_.first(length)) return c_row(course_.previous(t), b);
    return p_.c0 ? shared_.c0 + b * H_ : shared_.zero_state;
  }

  // The gradients of the last states wait where those of earlier ones will be.
  void start_states() {
    const int64_t count = rows_.count(p_.batch);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = rows_.batch_row(i);
      const T* h_n = p_.grad_h_n + state_row(b) * R_;
      for_own(outputs_, [&](int64_t j, int n) { V::load(h_n + j, n).store(carry_row(b) + j, n); });
      if (!Cell::kCellState) continue;
      const T* c_n = p_.grad_c_n ? p_.grad_c_n + state_row(b) * H_ : shared_.zeros;
      const T* c0 = p_.c0 ? p_.c0 + state_row(b) * H_ : nullptr;
      for_own(units_, [&](int64_t j, int n) {
        V::load(c_n + j, n).store(dc_row(b) + j, n);
        if (c0) V::load(c0 + j, n).store(shared_.c0 + b * H_ + j, n);
      });
    }
  }

  // h_prev of every row, and mid where there is one.
  void restore_states() {
    for (int64_t s = 0; s < p_.steps; ++s) {
      const int64_t t = course_.step(s), alive = rows_.alive(t);
      for (int64_t i = 0; i < alive; ++i) restore_row(t, rows_.batch_row(i), rows_.length(i));
    }
  }

  void restore_row(int64_t t, int64_t b, int64_t length) {
    T* h_prev = h_prev_row(t, b);
    const int64_t before = course_.previous(t);
    const bool first = t == course_.first(length);
    if (timeline_.reset(t, b) || (first && !p_.h0)) {
      copy_own(outputs_, shared_.zeros, h_prev);
    } else if (first) {
      copy_own(outputs_, p_.h0 + state_row(b) * R_, h_prev);
    } else if (projected_) {
      copy_own(outputs_, saved_row(before, b) + kS * H_, h_prev);
    } else {
      const T* saved = saved_row(before, b);
      const C* c = Cell::kCellState ? c_row(before, b) : shared_.zero_state;
      const T* h = h_prev_row(before, b);
      for_own(units_, [&](int64_t j, int n) {
        V values[kS];
        for (int k = 0; k < kS; ++k) values[k] = V::load(saved + k * H_ + j, n);
        Cell::output(values, V::load(c + j, n), V::load(h + j, n)).store(h_prev + j, n);
      });
    }
    if (!shared_.values.mid) return;
    T* mid = shared_.values.mid + row(t, b) * H_;
    const T* saved = saved_row(t, b);
    for_own(units_, [&](int64_t j, int n) {
      if constexpr (Cell::kTwoStage) {
        (V::load(saved + j, n) * V::load(h_prev + j, n)).store(mid + j, n);
      } else if constexpr (Cell::kCellState) {
        V values[kS];
        for (int k = 0; k < kS; ++k) values[k] = V::load(saved + k * H_ + j, n);
        Cell::output(values, V::load(c_row(t, b) + j, n), zero<V>()).store(mid + j, n);
      }
    });
  }

  static void copy_own(const Range& own, const T* from, T* to) {
    const int64_t bytes = (own.end - own.begin) * int64_t(sizeof(T));
    if (bytes > 0) memcpy(to + own.begin, from + own.begin, bytes);
  }
  template <class Function>
  static void for_own(const Range& own, const Function& function) {
    for (int64_t j = own.begin; j < own.end; j += kWidth)
      function(j, int(own.end - j < kWidth ? own.end - j : kWidth));
  }

  void step(int64_t t) {
    const int64_t alive = rows_.alive(t), after = course_.next(t);
    bool all_zero = true;
    for (int64_t i = 0; i < alive; ++i) {
      const int64_t b = rows_.batch_row(i), length = rows_.length(i);
      const bool last = t == course_.last(length);
      const bool cut = !last && timeline_.reset(after, b);
      at_.row[i] = timeline_.row(t, b);
      at_.a[i] = last || cut ? shared_.zeros : da_row(after, b);
      all_zero = all_zero && at_.a[i] == shared_.zeros;
      at_.carry_in[i] = last || (!cut && Cell::kDirect) ? carry_row(b) : shared_.zero_state;
      at_.saved[i] = saved_row(t, b);
      at_.h_prev[i] = h_prev_row(t, b);
      if (Cell::kCellState) {
        at_.c_prev[i] = c_before(t, b, length);
        at_.dc_in[i] = cut ? shared_.zero_state : dc_row(b);
      }
    }
    const auto& recurrent = shared_.recurrent;
    const auto& candidate = shared_.candidate;
    const auto& projection = shared_.projection;
    if constexpr (Cell::kTwoStage) {
      tiles(recurrent, units_, at_.a, alive, all_zero, [&](int64_t i, int64_t j, int n, V tile) {
        candidate_gradients(i, j, n, gradient_of_h(i, j, n, tile));
      });
      part_.meet();
      for (int64_t i = 0; i < alive; ++i) at_.a[i] = da_of(i) + 2 * H_;
      tiles(candidate, units_, at_.a, alive, false,
            [&](int64_t i, int64_t j, int n, V tile) { gate_gradients(i, j, n, tile); });
    } else if (projected_) {
      tiles(recurrent, outputs_, at_.a, alive, all_zero, [&](int64_t i, int64_t j, int n, V tile) {
        gradient_of_h(i, j, n, tile).store(dh_of(i) + j, n);
      });
      part_.meet();
      for (int64_t i = 0; i < alive; ++i) at_.a[i] = dh_of(i);
      tiles(projection, units_, at_.a, alive, false,
            [&](int64_t i, int64_t j, int n, V tile) { cell_gradients(i, j, n, tile); });
    } else {
      tiles(recurrent, units_, at_.a, alive, all_zero, [&](int64_t i, int64_t j, int n, V tile) {
        cell_gradients(i, j, n, gradient_of_h(i, j, n, tile));
      });
    }
    part_.meet();
  }

  // function(own row, unit, valid values, result of the product) for every own row and unit.
  template <class Function>
  FASTRNN_FN void tiles(const Operand<T, 1, 4>& op, const Range& own, const T* const* a,
                        int64_t rows, bool all_zero, const Function& function) const {
    // No step came after: the panels may not even have been packed.
    if (all_zero) {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = own.begin; j < own.end; j += kWidth)
          function(i, j, int(own.end - j < kWidth ? own.end - j : kWidth), zero<V>());
      return;
    }
    for_each_tile(op, Part::panels(op, own), a, rows,
                  [&](int64_t i, int64_t j, int n, const Results<C>& product) {
                    function(i, j, n, product[0]);
                  });
  }

  T* da_of(int64_t i) const { return shared_.values.da + at_.row[i] * shared_.values.da_width; }
  T* dh_of(int64_t i) const { return shared_.values.dh + at_.row[i] * R_; }

  V gradient_of_h(int64_t i, int64_t j, int n, V through_weights) const {
    const T* above = p_.grad_y + (at_.row[i] * p_.directions + d_) * R_;
    return through_weights + V::load(above + j, n) + V::load(at_.carry_in[i] + j, n);
  }

  void load_saved(int64_t i, int64_t j, int n, V* saved) const {
    for (int k = 0; k < kS; ++k) saved[k] = V::load(at_.saved[i] + k * H_ + j, n);
  }

  void cell_gradients(int64_t i, int64_t j, int n, V dh) const {
    if constexpr (!Cell::kTwoStage) {
      V saved[kS], da[kS], dh_direct, c_prev, c, dc, dc_prev;
      load_saved(i, j, n, saved);
      const V h_prev = Cell::kDirect ? V::load(at_.h_prev[i] + j, n) : zero<V>();
      if (Cell::kCellState) {
        const int64_t column = (at_.row[i] * p_.directions + d_) * H_;
        c_prev = V::load(at_.c_prev[i] + j, n);
        c = V::load(p_.cell_states + column + j, n);
        dc = V::load(at_.dc_in[i] + j, n);
        if (p_.grad_cell_states) dc = dc + V::load(p_.grad_cell_states + column + j, n);
      }
      Cell::backward(saved, h_prev, c_prev, c, dh, dc, da, dh_direct, dc_prev);
      for (int k = 0; k < kS; ++k) da[k].store(da_of(i) + k * H_ + j, n);
      const int64_t b = rows_.batch_row(i);
      if (Cell::kDirect) dh_direct.store(carry_row(b) + j, n);
      if (Cell::kCellState) dc_prev.store(dc_row(b) + j, n);
    }
  }

  void candidate_gradients(int64_t i, int64_t j, int n, V dh) const {
    if constexpr (Cell::kTwoStage) {
      V saved[kS], da_z, da_n, dh_direct;
      load_saved(i, j, n, saved);
      Cell::backward_candidate(saved, V::load(at_.h_prev[i] + j, n), dh, da_z, da_n, dh_direct);
      da_z.store(da_of(i) + H_ + j, n);
      da_n.store(da_of(i) + 2 * H_ + j, n);
      dh_direct.store(carry_row(rows_.batch_row(i)) + j, n);
    }
  }

  void gate_gradients(int64_t i, int64_t j, int n, V dmid) const {
    if constexpr (Cell::kTwoStage) {
      C* carry = carry_row(rows_.batch_row(i)) + j;
      V da_r, dh_direct = V::load(carry, n);
      Cell::backward_gates(V::load(at_.saved[i] + j, n), V::load(at_.h_prev[i] + j, n), dmid, da_r,
                           dh_direct);
      da_r.store(da_of(i) + j, n);
      dh_direct.store(carry, n);
    }
  }

  // Gradients of the initial states.
  void finish() {
    const int64_t count = rows_.count(p_.batch);
    bool all_zero = true;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = rows_.batch_row(i), length = rows_.length(i);
      const int64_t t = course_.first(length);
      const bool cut = length && timeline_.reset(t, b);
      at_.row[i] = state_row(b);
      at_.a[i] = !length || cut ? shared_.zeros : da_row(t, b);
      all_zero = all_zero && at_.a[i] == shared_.zeros;
      at_.carry_in[i] = !length || (!cut && Cell::kDirect) ? carry_row(b) : shared_.zero_state;
      if (!Cell::kCellState || !p_.grad_c0) continue;
      const C* dc = cut ? shared_.zero_state : dc_row(b);
      T* grad_c0 = p_.grad_c0 + state_row(b) * H_;
      for_own(units_, [&](int64_t j, int n) { V::load(dc + j, n).store(grad_c0 + j, n); });
    }
    if (!p_.grad_h0) return;
    tiles(shared_.recurrent, outputs_, at_.a, count, all_zero,
          [&](int64_t i, int64_t j, int n, V tile) {
            (tile + V::load(at_.carry_in[i] + j, n)).store(p_.grad_h0 + at_.row[i] * R_ + j, n);
          });
  }

  const Backward<T>& p_;
  const int d_;
  const int64_t H_, R_;
  const bool projected_;
  const int64_t width_;
  const Timeline& timeline_;
  const Course course_;
  const Rows rows_;
  BackwardShared<Cell, T>& shared_;
  const BackwardPointers<T>& at_;
  const Part part_;
  const Range units_, outputs_;
};

// Returns false when there is no memory for the workspace.
template <class Cell, class T>
bool backward(const Backward<T>& args, int threads) {
  const int64_t H = args.hidden, R = args.output, I = input_depth(args);
  const bool projected = args.weights[0].w_hr != nullptr;
  const int64_t recurrent = Cell::kGates * H * R;
  const Work work = {recurrent, 1 + Cell::kTwoStage + projected, 4 * Pack<Compute<T>>::kWidth,
                     recurrent + 2 * Cell::kGates * H * I, true};
  const Plan plan = make_plan<T>(args, work, Crowd::usable(threads));

  BackwardShared<Cell, T> shared[2];
  const auto prepare = [&](Arena& arena) {
    for (int d = 0; d < args.directions; ++d) shared[d].set_up(args, d, arena);
  };
  Arena measured(nullptr);
  ValidRows<T>(args, Timeline(args, measured), measured);
  prepare(measured);
  const int64_t common = measured.used();
  BackwardPointers<T>(args.batch, measured);
  const int64_t widest = I + R > H ? I + R : H;
  Products<T>(args.rows, Cell::kSaved * H, widest, measured);
  const int64_t per_thread = measured.used() - common;

  const Workspace workspace(common + per_thread * plan.threads);
  if (!workspace.data()) return false;
  if (args.grad_x) prefer_huge_pages(args.grad_x, args.rows * args.input * int64_t(sizeof(T)));
  for (int d = 0; d < args.directions; ++d) {
    const WeightGrads<T>& grads = args.grads[d];
    prefer_huge_pages(grads.w_ih, Cell::kGates * H * I * int64_t(sizeof(T)));
    prefer_huge_pages(grads.w_hh, recurrent * int64_t(sizeof(T)));
  }

  Arena arena(workspace.data());
  const Timeline timeline(args, arena);
  const ValidRows<T> rows(args, timeline, arena);
  prepare(arena);
  const RowValues<T> values[2] = {shared[0].values, shared[1].values};
  Barrier barriers[2], all;
  Crowd crowd;
#pragma omp parallel num_threads(plan.threads) if (plan.threads > 1)
  {
    const int rank = thread_rank(), size = team_size();
    Arena own(workspace.data() + common + per_thread * rank);
    const BackwardPointers<T> pointers(args.batch, own);
    Products<T> products(args.rows, Cell::kSaved * H, widest, own);
    int64_t waited = 0;
    const Stopwatch watch(size);
    const Assignment job = assign(args.directions, rank, size, barriers, &waited);
    for (int d = job.first_direction; d <= job.last_direction; ++d) {
      BackwardPass<Cell, T>(args, d, timeline, shared[d], pointers, Part{plan.split, job.team})
          .run();
      weight_gradients<Cell>(args, d, rows, values[d], products, job.team);
    }
    if (args.grad_x) {
      if (args.directions == 2) waited += all.wait(size);
      input_gradient<Cell>(args, timeline, rows, values, products, rank, size);
    }
    watch.stop(all, waited, crowd);
  }
  crowd.conclude();
  return true;
}

FASTRNN_NAMESPACE_END
