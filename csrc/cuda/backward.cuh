// The stages of a step of backpropagation through time. As in forward.cuh, a stage says what
// happens to one unit of one place once its sums are known; steps are visited in reverse.
#pragma once

#include "../core/cells/gru.h"
#include "../core/cells/lstm.h"
#include "../core/cells/vanilla.h"
#include "layer.h"
#include "math.cuh"

FASTRNN_NAMESPACE_BEGIN

// Facts of a cell that only backward asks for.
template <class Cell>
struct Gradients {
  static constexpr int kLast = Cell::kGates - 1;
  // Slots that go back through W_hh to h: all gates, but for the candidate of a second stage.
  static constexpr int kThrough = Cell::kTwoStage ? kLast : Cell::kGates;
  static constexpr bool kOwnSlot = Cell::kSlot[kLast] != kLast;

  // Where a slot's gradients lie in a row of da. Where the candidate has one slot for W_hh and one
  // for W_ih, the first comes first and the other last: what meets W_ih is then contiguous too.
  static FASTRNN_FN int column(int slot) {
    return kOwnSlot && slot <= kLast ? (slot + 1) % Cell::kGates : slot;
  }
};

template <class Math>
struct BackwardArgs : Layer {
  using S = typename Math::Storage;
  using N = typename Math::Number;

  int64_t rows = 0, reserve_width = 0;
  const S* c0 = nullptr;
  const N* cell_states = nullptr;
  const S* reserve = nullptr;
  const S* grad_y = nullptr;
  const S* grad_h_n = nullptr;
  const S* grad_c_n = nullptr;
  const N* grad_cell_states = nullptr;
  const S* h_prev[2] = {};  // by direction: (dense rows, R)
  S* da[2] = {};            // (dense rows, S*H), da_width from row to row
  int64_t da_width = 0;
  S* dh[2] = {};       // (dense rows, R), with a projection
  N* carry = nullptr;  // (D, B, R) by place: what reaches h of the step before directly
  N* dc = nullptr;     // (D, B, H) by place
  Exchange first;      // of exchange 0, what each place gave at its first step
};

template <class Math>
class BackwardUnit {
 public:
  using Args = BackwardArgs<Math>;
  using S = typename Math::Storage;
  using N = typename Math::Number;

  FASTRNN_DEVICE BackwardUnit(const Args& args, int direction)
      : p_(args), d_(direction), course_{args.time.steps, direction == 1} {}

 protected:
  FASTRNN_DEVICE void locate(int64_t t, int64_t place, int64_t unit) {
    const int64_t length = p_.time.length_of(place), after = course_.next(t);
    j_ = unit, place_ = place, t_ = t;
    row_ = p_.time.row(t, place), dense_ = p_.time.dense_row(t, place);
    batch_row_ = d_ * p_.time.batch + p_.time.batch_row(place);
    last_ = t == course_.last(length);
    cut_ = !last_ && p_.time.is_reset(after, place);
    first_ = t == course_.first(length);
  }
  static FASTRNN_DEVICE N value(const S* p, int64_t i) { return p ? Math::load(p[i]) : N(0); }

  FASTRNN_DEVICE int64_t by_place(int64_t width) const {
    return (d_ * p_.time.batch + place_) * width + j_;
  }
  // What reaches h of this step other than through weights.
  FASTRNN_DEVICE N gradient_of_h(bool direct) const {
    const int64_t R = p_.output;
    const N above = Math::load(p_.grad_y[(row_ * p_.directions + d_) * R + j_]);
    if (last_) return above + Math::load(p_.grad_h_n[batch_row_ * R + j_]);
    return above + (cut_ || !direct ? N(0) : p_.carry[by_place(R)]);
  }
  FASTRNN_DEVICE N gradient_of_c() const {
    const int64_t H = p_.hidden;
    const N* states = p_.grad_cell_states;
    const N above = states ? states[(row_ * p_.directions + d_) * H + j_] : N(0);
    if (last_) return above + value(p_.grad_c_n, batch_row_ * H + j_);
    return above + (cut_ ? N(0) : p_.dc[by_place(H)]);
  }
  FASTRNN_DEVICE N saved(int slot) const {
    return Math::load(p_.reserve[(d_ * p_.rows + row_) * p_.reserve_width + slot * p_.hidden + j_]);
  }
  FASTRNN_DEVICE N h_prev() const { return Math::load(p_.h_prev[d_][dense_ * p_.output + j_]); }
  FASTRNN_DEVICE N c_of(int64_t row) const {
    return p_.cell_states[(row * p_.directions + d_) * p_.hidden + j_];
  }
  FASTRNN_DEVICE N c_prev() const {
    if (p_.time.is_reset(t_, place_)) return N(0);
    if (first_) return value(p_.c0, batch_row_ * p_.hidden + j_);
    return c_of(p_.time.row(course_.previous(t_), place_));
  }
  // The gradient through W_hh ends where nothing came after, or what came was reset.
  FASTRNN_DEVICE N through_weights(N sum) const { return last_ || cut_ ? N(0) : sum; }

  template <class Cell>
  FASTRNN_DEVICE S* da(int slot) const {
    const int column = Gradients<Cell>::column(slot);
    return p_.da[d_] + dense_ * p_.da_width + column * p_.hidden + j_;
  }
  // Values for exchange 0, of which those of a first step are kept for the initial state.
  FASTRNN_DEVICE void keep_first(int count, const N* values) const {
    if (!first_ || !p_.first.rows) return;
    S* row = (S*)(p_.first.rows + (d_ * 2 * p_.work.places + place_) * p_.first.row_bytes);
    for (int k = 0; k < count; ++k) row[exchange_index(j_, k, count)] = Math::exchanged(values[k]);
  }

  const Args& p_;
  const int d_;
  const Course course_;
  int64_t t_, j_, place_, row_, dense_, batch_row_;
  bool last_, cut_, first_;
};

// The only stage of most cells; with a projection, the second of two.
template <class Cell, class Math, bool kProjected>
class CellBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = Cell::kGates;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) {
    this->locate(t, place, unit);
    if constexpr (!kProjected) dh_ = this->gradient_of_h(Cell::kDirect);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved_[k] = this->saved(k);
    if constexpr (Cell::kDirect) h_prev_ = this->h_prev();
    if constexpr (Cell::kCellState) {
      c_ = this->c_of(this->row_), c_prev_ = this->c_prev();
      dc_ = this->gradient_of_c();
    }
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    const N dh = kProjected ? sums[0] : dh_ + this->through_weights(sums[0]);
    N da[Cell::kSaved], direct = N(0), dc_prev = N(0);
    Cell::backward(saved_, h_prev_, c_prev_, c_, dh, dc_, da, direct, dc_prev);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) *this->template da<Cell>(k) = Math::store(da[k]);
    if constexpr (Cell::kDirect) this->p_.carry[this->by_place(this->p_.output)] = direct;
    if constexpr (Cell::kCellState) this->p_.dc[this->by_place(this->p_.hidden)] = dc_prev;
#pragma unroll
    for (int k = 0; k < kOut; ++k) out[k] = da[k];
    this->keep_first(kOut, out);
  }

 private:
  N dh_ = N(0), saved_[Cell::kSaved], h_prev_ = N(0), c_ = N(0), c_prev_ = N(0), dc_ = N(0);
};

// dh of the projected h; it goes on through W_hr.
template <class Math>
class ProjectionBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) {
    this->locate(t, place, unit);
    dh_ = this->gradient_of_h(false);
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    out[0] = dh_ + this->through_weights(sums[0]);
    this->p_.dh[this->d_][this->dense_ * this->p_.output + this->j_] = Math::store(out[0]);
  }

 private:
  N dh_;
};

template <class Cell, class Math>
class CandidateBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) {
    this->locate(t, place, unit);
    dh_ = this->gradient_of_h(true);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved_[k] = this->saved(k);
    h_prev_ = this->h_prev();
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N da_z, direct;
    Cell::backward_candidate(saved_, h_prev_, dh_ + this->through_weights(sums[0]), da_z, out[0],
                             direct);
    *this->template da<Cell>(1) = Math::store(da_z);
    *this->template da<Cell>(2) = Math::store(out[0]);
    this->p_.carry[this->by_place(this->p_.output)] = direct;
  }

 private:
  N dh_, saved_[Cell::kSaved], h_prev_;
};

template <class Cell, class Math>
class GatesBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = Gradients<Cell>::kThrough;
  using Base::Base;

  FASTRNN_DEVICE void load(int64_t t, int64_t place, int64_t unit) {
    this->locate(t, place, unit);
    r_ = this->saved(0), h_prev_ = this->h_prev();
    da_z_ = Math::load(*this->template da<Cell>(1));
    direct_ = this->p_.carry[this->by_place(this->p_.output)];
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    Cell::backward_gates(r_, h_prev_, sums[0], out[0], direct_);
    out[1] = da_z_;
    *this->template da<Cell>(0) = Math::store(out[0]);
    this->p_.carry[this->by_place(this->p_.output)] = direct_;
    this->keep_first(kOut, out);
  }

 private:
  N r_, h_prev_, da_z_, direct_;
};

template <class Cell_, class Math_, bool kProjected>
struct BackwardPass {
  using Cell = Cell_;
  using Math = Math_;
  using Args = BackwardArgs<Math>;
  static constexpr bool kBackward = true;
  static constexpr int kStages = kProjected ? 2 : 1;
  template <bool kTwo, class Unused>
  struct Stages {
    using First = CellBackward<Cell, Math, false>;
    using Second = First;
  };
  template <class Unused>
  struct Stages<true, Unused> {
    using First = ProjectionBackward<Math>;
    using Second = CellBackward<Cell, Math, true>;
  };
  using First = typename Stages<kProjected, void>::First;
  using Second = typename Stages<kProjected, void>::Second;
};
template <class Math_>
struct BackwardPass<GruResetBefore, Math_, false> {
  using Cell = GruResetBefore;
  using Math = Math_;
  using Args = BackwardArgs<Math>;
  static constexpr bool kBackward = true;
  static constexpr int kStages = 2;
  using First = CandidateBackward<Cell, Math>;
  using Second = GatesBackward<Cell, Math>;
};

// The gradient of h0: what the first steps gave, through W_hh. One step, of which every place is.
template <class Math>
struct InitialArgs : Layer {
  using S = typename Math::Storage;
  using N = typename Math::Number;

  Timeline rows;  // of the sequence; `time` is that one step
  bool direct = false;
  const S* grad_h_n = nullptr;
  const N* carry = nullptr;
  S* grad_h0 = nullptr;
};

template <class Math>
class InitialBackward {
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = 0;

  FASTRNN_DEVICE InitialBackward(const InitialArgs<Math>& args, int direction)
      : p_(args), d_(direction) {}

  FASTRNN_DEVICE void load(int64_t, int64_t place, int64_t unit) {
    const int64_t B = p_.rows.batch, R = p_.output, length = p_.rows.length_of(place);
    const Course course{p_.rows.steps, d_ == 1};
    const bool cut = length > 0 && p_.rows.is_reset(course.first(length), place);
    at_ = (d_ * B + p_.rows.batch_row(place)) * R + unit;
    through_ = length > 0 && !cut;
    direct_ = length == 0         ? Math::load(p_.grad_h_n[at_])
              : cut || !p_.direct ? N(0)
                                  : p_.carry[(d_ * B + place) * R + unit];
  }
  FASTRNN_DEVICE void finish(const N* sums, N*) {
    p_.grad_h0[at_] = Math::store(direct_ + (through_ ? sums[0] : N(0)));
  }

 private:
  const InitialArgs<Math>& p_;
  const int d_;
  int64_t at_ = 0;
  bool through_ = false;
  N direct_ = N(0);
};

template <class Math_>
struct InitialPass {
  using Math = Math_;
  using Args = InitialArgs<Math>;
  static constexpr bool kBackward = false;
  static constexpr int kStages = 1;
  using First = InitialBackward<Math>;
  using Second = First;
};

FASTRNN_NAMESPACE_END
