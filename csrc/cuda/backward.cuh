// The stages of a step of backpropagation through time. As in forward.cuh, a stage says what
// happens to one unit of one place once its sums are known, in three calls of which load() looks at
// nothing that it asks for; steps are visited in reverse.
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
  FASTRNN_DEVICE void locate(const Moment& now, const Place& place, int unit) {
    now_ = now, place_ = place, j_ = unit;
    last_ = now.t == course_.last(place.length);
    first_ = now.t == course_.first(place.length);
    reset_after_ = last_ ? uint8_t(0) : p_.time.reset_at(course_.next(now.t), place);
  }
  FASTRNN_DEVICE int64_t row() const { return p_.time.row(now_, place_); }
  FASTRNN_DEVICE int64_t dense() const { return Timeline::dense_row(now_, place_); }
  FASTRNN_DEVICE int64_t batch_row() const { return d_ * p_.time.batch + place_.batch_row; }
  FASTRNN_DEVICE int64_t by_place(int64_t width) const {
    return (d_ * p_.time.batch + place_.index) * width + j_;
  }

  // What reaches h of this step other than through weights: ask() in load(), value() in finish().
  class GradientOfH {
   public:
    FASTRNN_DEVICE void ask(const BackwardUnit& unit, bool direct) {
      const Args& p = unit.p_;
      const int64_t R = p.output;
      above_ = p.grad_y[(unit.row() * p.directions + unit.d_) * R + unit.j_];
      h_n_ = unit.last_ ? p.grad_h_n[unit.batch_row() * R + unit.j_] : S{};
      carry_ = direct && !unit.last_ ? p.carry[unit.by_place(R)] : N(0);
    }
    FASTRNN_DEVICE N value(const BackwardUnit& unit) const {
      return Math::load(above_) + (unit.last_ ? Math::load(h_n_) : unit.unless_cut(carry_));
    }

   private:
    S above_ = {}, h_n_ = {};
    N carry_ = N(0);
  };
  class GradientOfC {
   public:
    FASTRNN_DEVICE void ask(const BackwardUnit& unit) {
      const Args& p = unit.p_;
      const int64_t H = p.hidden;
      const N* states = p.grad_cell_states;
      above_ = states ? states[(unit.row() * p.directions + unit.d_) * H + unit.j_] : N(0);
      c_n_ = unit.last_ && p.grad_c_n ? p.grad_c_n[unit.batch_row() * H + unit.j_] : S{};
      dc_ = unit.last_ ? N(0) : p.dc[unit.by_place(H)];
    }
    FASTRNN_DEVICE N value(const BackwardUnit& unit) const {
      return above_ + (unit.last_ ? Math::load(c_n_) : unit.unless_cut(dc_));
    }

   private:
    N above_ = N(0), dc_ = N(0);
    S c_n_ = {};
  };
  // c that entered this step; `next` is the step that this pass goes to, the one before.
  class StateBefore {
   public:
    FASTRNN_DEVICE void ask(const BackwardUnit& unit, const Moment& next) {
      const Args& p = unit.p_;
      reset_ = p.time.reset_at(unit.now_.t, unit.place_);
      initial_ = unit.first_ && p.c0 ? p.c0[unit.batch_row() * p.hidden + unit.j_] : S{};
      c_ = unit.first_ ? N(0) : unit.c_of(p.time.row(next, unit.place_));
    }
    FASTRNN_DEVICE N value(const BackwardUnit& unit) const {
      return reset_ ? N(0) : unit.first_ ? Math::load(initial_) : c_;
    }

   private:
    uint8_t reset_ = 0;
    S initial_ = {};
    N c_ = N(0);
  };

  FASTRNN_DEVICE S saved(int slot) const {
    return p_.reserve[(d_ * p_.rows + row()) * p_.reserve_width + slot * p_.hidden + j_];
  }
  FASTRNN_DEVICE S h_prev() const { return p_.h_prev[d_][dense() * p_.output + j_]; }
  FASTRNN_DEVICE N c_of(int64_t row) const {
    return p_.cell_states[(row * p_.directions + d_) * p_.hidden + j_];
  }
  // Gradients from the step after end where that was reset; the one through W_hh also where there
  // was none.
  FASTRNN_DEVICE N unless_cut(N v) const { return reset_after_ ? N(0) : v; }
  FASTRNN_DEVICE N through_weights(N sum) const { return last_ ? N(0) : unless_cut(sum); }

  template <class Cell>
  FASTRNN_DEVICE S* da(int slot) const {
    const int column = Gradients<Cell>::column(slot);
    return p_.da[d_] + dense() * p_.da_width + column * p_.hidden + j_;
  }
  // Values for exchange 0, of which those of a first step are kept for the initial state.
  FASTRNN_DEVICE void keep_first(int count, const N* values) const {
    if (!first_ || !p_.first.rows) return;
    const int64_t place = d_ * 2 * p_.work.places + place_.index;
    S* row = (S*)(p_.first.rows + place * p_.first.row_bytes);
    for (int k = 0; k < count; ++k) row[exchange_index(j_, k, count)] = Math::exchanged(values[k]);
  }

  const Args& p_;
  const int d_;
  const Course course_;
  Moment now_;
  Place place_;
  int j_ = 0;
  bool last_ = false, first_ = false;
  uint8_t reset_after_ = 0;
};

// The only stage of most cells; with a projection, the second of two.
template <class Cell, class Math, bool kProjected>
class CellBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using S = typename Math::Storage;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = Cell::kGates;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment& next, const Place& place, int unit) {
    this->locate(now, place, unit);
    if constexpr (!kProjected) dh_.ask(*this, Cell::kDirect);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved_[k] = this->saved(k);
    if constexpr (Cell::kDirect) h_prev_ = this->h_prev();
    if constexpr (Cell::kCellState) {
      c_ = this->c_of(this->row());
      c_prev_.ask(*this, next), dc_.ask(*this);
    }
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N dh = sums[0], saved[Cell::kSaved], h_prev = N(0), c_prev = N(0), dc = N(0);
    if constexpr (!kProjected) dh = dh_.value(*this) + this->through_weights(dh);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = Math::load(saved_[k]);
    if constexpr (Cell::kDirect) h_prev = Math::load(h_prev_);
    if constexpr (Cell::kCellState) c_prev = c_prev_.value(*this), dc = dc_.value(*this);
    Cell::backward(saved, h_prev, c_prev, c_, dh, dc, da_, direct_, dc_prev_);
#pragma unroll
    for (int k = 0; k < kOut; ++k) out[k] = da_[k];
  }
  FASTRNN_DEVICE void store() const {
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) *this->template da<Cell>(k) = Math::store(da_[k]);
    if constexpr (Cell::kDirect) this->p_.carry[this->by_place(this->p_.output)] = direct_;
    if constexpr (Cell::kCellState) this->p_.dc[this->by_place(this->p_.hidden)] = dc_prev_;
    this->keep_first(kOut, da_);
  }

 private:
  typename Base::GradientOfH dh_;
  typename Base::GradientOfC dc_;
  typename Base::StateBefore c_prev_;
  S saved_[Cell::kSaved] = {}, h_prev_ = {};
  N c_ = N(0), da_[Cell::kSaved] = {}, direct_ = N(0), dc_prev_ = N(0);
};

// dh of the projected h; it goes on through W_hr.
template <class Math>
class ProjectionBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment&, const Place& place, int unit) {
    this->locate(now, place, unit);
    dh_.ask(*this, false);
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    sum_ = out[0] = dh_.value(*this) + this->through_weights(sums[0]);
  }
  FASTRNN_DEVICE void store() const {
    this->p_.dh[this->d_][this->dense() * this->p_.output + this->j_] = Math::store(sum_);
  }

 private:
  typename Base::GradientOfH dh_;
  N sum_ = N(0);
};

template <class Cell, class Math>
class CandidateBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using S = typename Math::Storage;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = 1;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment&, const Place& place, int unit) {
    this->locate(now, place, unit);
    dh_.ask(*this, true);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved_[k] = this->saved(k);
    h_prev_ = this->h_prev();
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    N saved[Cell::kSaved];
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = Math::load(saved_[k]);
    const N dh = dh_.value(*this) + this->through_weights(sums[0]);
    Cell::backward_candidate(saved, Math::load(h_prev_), dh, da_z_, da_n_, direct_);
    out[0] = da_n_;
  }
  FASTRNN_DEVICE void store() const {
    *this->template da<Cell>(1) = Math::store(da_z_);
    *this->template da<Cell>(2) = Math::store(da_n_);
    this->p_.carry[this->by_place(this->p_.output)] = direct_;
  }

 private:
  typename Base::GradientOfH dh_;
  S saved_[Cell::kSaved] = {}, h_prev_ = {};
  N da_z_ = N(0), da_n_ = N(0), direct_ = N(0);
};

template <class Cell, class Math>
class GatesBackward : public BackwardUnit<Math> {
  using Base = BackwardUnit<Math>;
  using S = typename Math::Storage;
  using N = typename Math::Number;

 public:
  static constexpr int kIn = 1, kOut = Gradients<Cell>::kThrough;
  using Base::Base;

  FASTRNN_DEVICE void load(const Moment& now, const Moment&, const Place& place, int unit) {
    this->locate(now, place, unit);
    r_ = this->saved(0), h_prev_ = this->h_prev();
    da_z_ = *this->template da<Cell>(1);
    direct_ = this->p_.carry[this->by_place(this->p_.output)];
  }
  FASTRNN_DEVICE void finish(const N* sums, N* out) {
    Cell::backward_gates(Math::load(r_), Math::load(h_prev_), sums[0], da_[0], direct_);
    da_[1] = Math::load(da_z_);
    out[0] = da_[0], out[1] = da_[1];
  }
  FASTRNN_DEVICE void store() const {
    *this->template da<Cell>(0) = Math::store(da_[0]);
    this->p_.carry[this->by_place(this->p_.output)] = direct_;
    this->keep_first(kOut, da_);
  }

 private:
  S r_ = {}, h_prev_ = {}, da_z_ = {};
  N direct_ = N(0), da_[kOut] = {};
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

  FASTRNN_DEVICE void load(const Moment&, const Moment&, const Place& one, int unit) {
    const int64_t B = p_.rows.batch, R = p_.output;
    const Place place = p_.rows.place(one.index);
    const Course course{p_.rows.steps, d_ == 1};
    const bool cut = place.length > 0 && p_.rows.reset_at(course.first(place.length), place) != 0;
    at_ = (d_ * B + place.batch_row) * R + unit;
    through_ = place.length > 0 && !cut;
    direct_ = place.length == 0   ? Math::load(p_.grad_h_n[at_])
              : cut || !p_.direct ? N(0)
                                  : p_.carry[(d_ * B + place.index) * R + unit];
  }
  FASTRNN_DEVICE void finish(const N* sums, N*) { direct_ += through_ ? sums[0] : N(0); }
  FASTRNN_DEVICE void store() const { p_.grad_h0[at_] = Math::store(direct_); }

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
