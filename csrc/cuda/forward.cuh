// The stages of a step forward: what happens to one unit of one place once its sums are known.
//
// A stage is made for a direction, and called three times. load() asks for what can be read before
// the sums are known. It looks at nothing that it has asked for, not even to convert it: that would
// wait for it, and the states that others send are waited for afterwards. finish() makes of the
// sums the values that go to the next stage. store() writes what only later launches and the caller
// read, when those values have gone out. The products, and who is given which unit and place, are
// in sequence.cuh.
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
  FASTRNN_DEVICE void locate(const Moment& now, const Place& place, int unit) {
    now_ = now, place_ = place, j_ = unit;
    reset_ = p_.time.reset_at(now.t, place);
  }
  static FASTRNN_DEVICE S value(const S* p, int64_t i) { return p ? p[i] : S{}; }

  // The input of a gate, and its biases.
  struct Input {
    S x = {}, b_ih = {}, b_hh = {};
    FASTRNN_DEVICE N of_x() const { return Math::load(x) + Math::load(b_ih); }
    FASTRNN_DEVICE N bias() const { return Math::load(b_hh); }
  };
  FASTRNN_DEVICE Input input(int gates, int g) const {
    const int64_t H = p_.hidden, dense = Timeline::dense_row(now_, place_);
    return {p_.gates[d_][(dense * gates + g) * H + j_], value(p_.b_ih[d_], g * H + j_),
            value(p_.b_hh[d_], g * H + j_)};
  }
  // Sums and states are ignored where the state was reset; NaN times zero would not be.
  FASTRNN_DEVICE N unless_reset(N v) const { return reset_ ? N(0) : v; }

  FASTRNN_DEVICE int64_t by_place() const {
    return (d_ * p_.time.batch + place_.index) * p_.hidden + j_;
  }
  FASTRNN_DEVICE int64_t row() const { return p_.time.row(now_, place_); }
  FASTRNN_DEVICE int64_t batch_row() const { return d_ * p_.time.batch + place_.batch_row; }
  FASTRNN_DEVICE bool is_last() const { return now_.t == course_.last(place_.length); }

  FASTRNN_DEVICE void save(int slot, N v) const {
    if (p_.reserve)
      p_.reserve[(d_ * p_.rows + row()) * p_.reserve_width + slot * p_.hidden + j_] =
          Math::store(v);
  }
  FASTRNN_DEVICE void output_h(N h) const {
    const S stored = Math::store(h);
    p_.y[(row() * p_.directions + d_) * p_.output + j_] = stored;
    if (is_last()) p_.h_n[batch_row() * p_.output + j_] = stored;
  }
  FASTRNN_DEVICE void output_c(N c) const {
    if (p_.cell_states) p_.cell_states[(row() * p_.directions + d_) * p_.hidden + j_] = c;
    if (is_last()) p_.c_n[batch_row() * p_.hidden + j_] = Math::store(c);
  }

  const Args& p_;
  const int d_;
  const Course course_;
  Moment now_;
  Place place_;
  int j_ = 0;
  uint8_t reset_ = 0;
};

// The only stage of most cells; with a projection, the first of two.
template <class Cell, class Math, bool kProjected>
class CellForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = Cell::kGates, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment&, const Place& place, int unit) {
    this->locate(now, place, unit);
#pragma unroll
    for (int g = 0; g < kIn; ++g) input_[g] = this->input(kIn, g);
    if constexpr (kKeepsState) before_ = this->p_.state[this->by_place()];
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N x[kIn], r[kIn];
#pragma unroll
    for (int g = 0; g < kIn; ++g) {
      x[g] = input_[g].of_x();
      r[g] = input_[g].bias() + this->unless_reset(sums[g]);
    }
    const N before = this->unless_reset(before_);
    Cell::forward(x, r, before, before, saved_, h_, c_);
    out[0] = h_;
  }
  FASTRNN_DEVICE void store() const {
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) this->save(k, saved_[k]);
    if constexpr (Cell::kCellState) this->output_c(c_);
    if constexpr (kKeepsState) this->p_.state[this->by_place()] = Cell::kCellState ? c_ : h_;
    if constexpr (!kProjected) this->output_h(h_);
  }

 private:
  static constexpr bool kKeepsState = Cell::kCellState || Cell::kDirect;
  typename Base::Input input_[kIn];
  N before_ = N(0);  // c of the step before, or h
  N saved_[Cell::kSaved] = {}, h_ = N(0), c_ = N(0);
};

// h = W_hr m
template <class Cell, class Math>
class ProjectionForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment&, const Place& place, int unit) {
    this->locate(now, place, unit);
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) { h_ = out[0] = sums[0]; }
  FASTRNN_DEVICE void store() const {
    this->output_h(h_);
    this->save(Cell::kSaved, h_);
  }

 private:
  N h_ = N(0);
};

template <class Cell, class Math>
class GatesForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = Cell::kFirstGates, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment&, const Place& place, int unit) {
    this->locate(now, place, unit);
#pragma unroll
    for (int g = 0; g < kIn; ++g) input_[g] = this->input(Cell::kGates, g);
    h_prev_ = this->p_.state[this->by_place()];
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N x[kIn], r[kIn];
#pragma unroll
    for (int g = 0; g < kIn; ++g) {
      x[g] = input_[g].of_x();
      r[g] = input_[g].bias() + this->unless_reset(sums[g]);
    }
    Cell::forward_gates(x, r, this->unless_reset(h_prev_), saved_, out[0]);
  }
  FASTRNN_DEVICE void store() const {
#pragma unroll
    for (int k = 0; k < kIn; ++k) this->save(k, saved_[k]);
    this->p_.update[this->by_place()] = saved_[1];
  }

 private:
  typename Base::Input input_[kIn];
  N h_prev_ = N(0), saved_[kIn] = {};
};

template <class Cell, class Math>
class CandidateForward : public ForwardUnit<Math> {
  using Base = ForwardUnit<Math>;
  using N = typename Math::Number;
  static constexpr int kGate = Cell::kFirstGates;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment&, const Place& place, int unit) {
    this->locate(now, place, unit);
    input_ = this->input(Cell::kGates, kGate);
    z_ = this->p_.update[this->by_place()], h_prev_ = this->p_.state[this->by_place()];
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    Cell::forward_candidate(input_.of_x(), input_.bias() + sums[0], z_, this->unless_reset(h_prev_),
                            n_, h_);
    out[0] = h_;
  }
  FASTRNN_DEVICE void store() const {
    this->save(kGate, n_);
    this->p_.state[this->by_place()] = h_;
    this->output_h(h_);
  }

 private:
  typename Base::Input input_;
  N z_ = N(0), h_prev_ = N(0), n_ = N(0), h_ = N(0);
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
