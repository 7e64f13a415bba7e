// The stages of a step forward: what happens to one unit of one place once its sums are known.
//
// A stage is made for a direction; load() reads what can be read before the sums are known, and
// finish() makes of them the values that go to the next stage. The products, and who is given
// which unit and place, are in sequence.cuh.
#pragma once

#include "../core/cells/gru.h"
#include "../core/cells/lstm.h"
#include "../core/cells/vanilla.h"
#include "layer.h"
#include "math.cuh"

FASTRNN_NAMESPACE_BEGIN

template <class Math>
struct ForwardArgs : Layer {
  using S = typename Math::Storage;
  using N = typename Math::Number;

  const S* gates[2] = {};  // by direction: (dense rows, G*H) x W_ihᵀ
  const S* b_ih[2] = {};   // (G*H) or null
  const S* b_hh[2] = {};
  N* state = nullptr;        // (D, B, H) by place: c, or h where a cell reads it beside W_hh
  N* update = nullptr;       // (D, B, H) by place: z between the stages of gru_reset_before
  S* y = nullptr;            // (rows, D*R)
  S* h_n = nullptr;          // (D, B, R)
  S* c_n = nullptr;          // (D, B, H)
  N* cell_states = nullptr;  // (rows, D*H) or null
  S* reserve = nullptr;      // (D, rows, reserve_width) or null
  int64_t rows = 0, reserve_width = 0;
};

// One unit of one place in one direction.
template <class Math>
class ForwardUnit {
 public:
  using Args = ForwardArgs<Math>;
  using S = typename Math::Storage;
  using N = typename Math::Number;
  static constexpr bool kBackward = false;

  FASTRNN_DEVICE ForwardUnit(const Args& args, int direction)
      : p_(args), d_(direction), course_{args.time.steps, direction == 1} {}

 protected:
  FASTRNN_DEVICE void locate(int64_t t, int64_t place, int64_t unit) {
    j_ = unit;
    row_ = p_.time.row(t, place);
    dense_ = p_.time.dense_row(t, place);
    batch_row_ = d_ * p_.time.batch + p_.time.batch_row(place);
    state_ = (d_ * p_.time.batch + place) * p_.hidden + unit;
    reset_ = p_.time.is_reset(t, place);
    last_ = t == course_.last(p_.time.length_of(place));
  }
  static FASTRNN_DEVICE N value(const S* p, int64_t i) { return p ? Math::load(p[i]) : N(0); }
  FASTRNN_DEVICE N input(int gates, int g) const {
    const int64_t H = p_.hidden;
    return Math::load(p_.gates[d_][(dense_ * gates + g) * H + j_]) + value(p_.b_ih[d_], g * H + j_);
  }
  FASTRNN_DEVICE N bias(int g) const { return value(p_.b_hh[d_], g * p_.hidden + j_); }
  FASTRNN_DEVICE N state() const { return reset_ ? N(0) : p_.state[state_]; }

  FASTRNN_DEVICE void save(int slot, N v) const {
    if (p_.reserve)
      p_.reserve[(d_ * p_.rows + row_) * p_.reserve_width + slot * p_.hidden + j_] = Math::store(v);
  }
  FASTRNN_DEVICE void output_h(N h) const {
    const S stored = Math::store(h);
    p_.y[(row_ * p_.directions + d_) * p_.output + j_] = stored;
    if (last_) p_.h_n[batch_row_ * p_.output + j_] = stored;
  }
  FASTRNN_DEVICE void output_c(N c) const {
    if (p_.cell_states) p_.cell_states[(row_ * p_.directions + d_) * p_.hidden + j_] = c;
    if (last_) p_.c_n[batch_row_ * p_.hidden + j_] = Math::store(c);
  }

  const Args& p_;
  const int d_;
  const Course course_;
  int64_t j_, row_, dense_, batch_row_, state_;
  bool reset_, last_;
};

// The only stage of most cells; with a projection, the first of two.
template <class Cell, class Math, bool kProjected>
class CellForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = Cell::kGates, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) {
    this->locate(t, place, unit);
#pragma unroll
    for (int g = 0; g < kIn; ++g) x_[g] = this->input(kIn, g), r_[g] = this->bias(g);
    if constexpr (kKeepsState) before_ = this->state();
  }

  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N saved[Cell::kSaved], h, c = N(0);
    // A state that was reset has no part in the sums; NaN times zero would have.
#pragma unroll
    for (int g = 0; g < kIn; ++g) r_[g] += this->reset_ ? N(0) : sums[g];
    Cell::forward(x_, r_, before_, before_, saved, h, c);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) this->save(k, saved[k]);
    if constexpr (Cell::kCellState) this->output_c(c);
    if constexpr (kKeepsState) this->p_.state[this->state_] = Cell::kCellState ? c : h;
    if constexpr (!kProjected) this->output_h(h);
    out[0] = h;
  }

 private:
  static constexpr bool kKeepsState = Cell::kCellState || Cell::kDirect;
  N x_[kIn], r_[kIn];
  N before_ = N(0);  // c of the step before, or h
};

// h = W_hr m
template <class Cell, class Math>
class ProjectionForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) { this->locate(t, place, unit); }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    this->output_h(sums[0]);
    this->save(Cell::kSaved, sums[0]);
    out[0] = sums[0];
  }
};

template <class Cell, class Math>
class GatesForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = Cell::kFirstGates, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) {
    this->locate(t, place, unit);
#pragma unroll
    for (int g = 0; g < kIn; ++g) x_[g] = this->input(Cell::kGates, g), r_[g] = this->bias(g);
    h_prev_ = this->state();
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N saved[kIn];
#pragma unroll
    for (int g = 0; g < kIn; ++g) r_[g] += this->reset_ ? N(0) : sums[g];
    Cell::forward_gates(x_, r_, h_prev_, saved, out[0]);
#pragma unroll
    for (int k = 0; k < kIn; ++k) this->save(k, saved[k]);
    this->p_.update[this->state_] = saved[1];
  }

 private:
  N x_[kIn], r_[kIn], h_prev_;
};

template <class Cell, class Math>
class CandidateForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;
  static constexpr int kGate = Cell::kFirstGates;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) {
    this->locate(t, place, unit);
    x_ = this->input(Cell::kGates, kGate), r_ = this->bias(kGate);
    z_ = this->p_.update[this->state_], h_prev_ = this->state();
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N n, h;
    Cell::forward_candidate(x_, r_ + sums[0], z_, h_prev_, n, h);
    this->save(kGate, n);
    this->p_.state[this->state_] = h;
    this->output_h(h);
    out[0] = h;
  }

 private:
  N x_, r_, z_, h_prev_;
};

// A whole step: what sequence.cuh runs.
template <class Cell_, class Math_, bool kProjected_>
struct ForwardPass {
  using Cell = Cell_;
  using Math = Math_;
  using Args = ForwardArgs<Math>;
  static constexpr bool kProjected = kProjected_;
  static constexpr int kStages = kProjected ? 2 : 1;
  static constexpr bool kBackward = false;
  using First = CellForward<Cell, Math, kProjected>;
  using Second = ProjectionForward<Cell, Math>;
};
template <class Math_>
struct ForwardPass<GruResetBefore, Math_, false> {
  using Cell = GruResetBefore;
  using Math = Math_;
  using Args = ForwardArgs<Math>;
  static constexpr bool kProjected = false;
  static constexpr int kStages = 2;
  static constexpr bool kBackward = false;
  using First = GatesForward<Cell, Math>;
  using Second = CandidateForward<Cell, Math>;
};

FASTRNN_NAMESPACE_END
