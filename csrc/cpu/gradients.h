// Gradients of weights, biases and input, from what backpropagation through time left of each row.
#pragma once

#include "../core/arguments.h"
#include "products.h"
#include "timeline.h"

FASTRNN_NAMESPACE_BEGIN

// What a direction's backward pass leaves for every row, one row after the other.
template <class T>
struct RowValues {
  T* da = nullptr;  // S*H gradients of the pre-activations, rows da_width apart
  int64_t da_width = 0;
  T* h_prev = nullptr;  // (rows, R) the state that entered the step
  T* mid = nullptr;     // (rows, H) r h of gru_reset_before, o tanh(c) before a projection
  T* dh = nullptr;      // (rows, R) gradient of h, with a projection only
};

// The rows that exist: all, or those within the lengths. Padding may hold anything, NaN included,
// so that zeros in da would not do.
template <class T>
struct ValidRows {
  int64_t count;
  const int64_t* index = nullptr;  // null: all rows
  RowSource<T> x;

  FASTRNN_ONCE ValidRows(const Backward<T>& p, const Timeline& timeline, Arena& arena)
      : count(p.rows) {
    const bool equally_spaced = p.batch_sizes || p.batch == 1 || p.x_step == p.batch * p.x_row;
    int64_t* row = p.lengths ? arena.take<int64_t>(p.rows) : nullptr;
    int64_t* offset = p.lengths || !equally_spaced ? arena.take<int64_t>(p.rows) : nullptr;
    x = {p.x, p.batch_sizes ? p.input : p.batch == 1 ? p.x_step : p.x_row, nullptr};
    if (!offset || arena.measuring()) return;
    count = 0;
    for (int64_t t = 0; t < p.steps; ++t) {
      const int64_t alive = timeline.alive(t);
      for (int64_t i = 0; i < alive; ++i, ++count) {
        const int64_t b = timeline.batch_row(i);
        offset[count] = t * p.x_step + b * p.x_row;
        if (row) row[count] = timeline.row(t, b);
      }
    }
    index = row;
    x = {p.x, 1, offset};
  }
};

// Gradients of a direction's weights and biases; every thread of its team takes a share of their
// rows.
template <class Cell, class T>
void weight_gradients(const Backward<T>& p, int direction, const ValidRows<T>& rows,
                      const RowValues<T>& values, Products<T>& products, Team team) {
  constexpr int kLast = Cell::kGates - 1;
  constexpr int64_t kBlock = Pack<Compute<T>>::kWidth;
  // In a cell's slots the gates lie as in the weights. The candidate, the last gate, may be an
  // exception: its part in W_ih has a slot of its own, or its part in W_hh met mid instead of h.
  constexpr bool kOwnSlot = Cell::kSlot[kLast] != kLast;
  constexpr int kCommon = kOwnSlot || Cell::kTwoStage ? kLast : Cell::kGates;
  const int64_t H = p.hidden, R = p.output, I = input_depth(p);
  const WeightGrads<T>& grads = p.grads[direction];
  const RowSource<T> h_prev = {values.h_prev, R, rows.index};
  const RowSource<T> mid = {values.mid, H, rows.index};

  // The columns of slots [slot, slot + slots) of da: gates [in, ..) of W_ih and [hidden, ..) of
  // W_hh, -1 for neither.
  const auto gates = [&](int slot, int slots, int in, int hidden, const RowSource<T>& state) {
    const int64_t columns = slots * H;
    Range own((columns + kBlock - 1) / kBlock, team.rank, team.size);
    const int64_t begin = own.begin * kBlock;
    const int64_t end = own.end * kBlock < columns ? own.end * kBlock : columns;
    const auto part = [&](T* grad, int gate, int64_t width) {
      return grad && gate >= 0 ? grad + (gate * H + begin) * width : nullptr;
    };
    const typename Products<T>::Factor factors[2] = {
        {rows.x, I, part(grads.w_ih, in, I)},
        {state, R, part(grads.w_hh, hidden, R)},
    };
    T* const sums[2] = {part(grads.b_ih, in, 1), part(grads.b_hh, hidden, 1)};
    products.outer({values.da, values.da_width, rows.index}, slot * H + begin, end - begin,
                   rows.count, factors, sums);
  };
  gates(0, kCommon, 0, 0, h_prev);
  if (Cell::kTwoStage) gates(kLast, 1, kLast, kLast, mid);
  if (kOwnSlot) gates(kLast, 1, -1, kLast, h_prev);
  if (kOwnSlot) gates(Cell::kSlot[kLast], 1, kLast, -1, h_prev);

  if (!grads.w_hr) return;
  const Range own(R, team.rank, team.size);
  const typename Products<T>::Factor factors[2] = {{mid, H, grads.w_hr + own.begin * H}, {}};
  T* const sums[2] = {};
  products.outer({values.dh, R, rows.index}, own.begin, own.end - own.begin, rows.count, factors,
                 sums);
}

// Gradient of x where it is W_ih x already: that of the gates.
template <class Cell, class T>
void gates_gradient(const Backward<T>& p, const ValidRows<T>& rows, const RowValues<T>* values,
                    const Range& own) {
  const int64_t H = p.hidden, G = Cell::kGates;
  for (int64_t i = own.begin; i < own.end; ++i) {
    const int64_t row = rows.index ? rows.index[i] : i;
    for (int d = 0; d < p.directions; ++d)
      for (int g = 0; g < G; ++g)
        memcpy(p.grad_x + row * p.input + (d * G + g) * H,
               values[d].da + row * values[d].da_width + Cell::kSlot[g] * H, H * sizeof(T));
  }
}

// Gradient of x from both directions; every thread takes a share of the rows.
template <class Cell, class T>
void input_gradient(const Backward<T>& p, const Timeline& timeline, const ValidRows<T>& rows,
                    const RowValues<T>* values, Products<T>& products, int rank, int size) {
  constexpr int kLast = Cell::kGates - 1;
  const int64_t H = p.hidden, I = p.input;
  if (I == 0) return;
  const Range own(rows.count, rank, size);
  // Gates of which the slots are neighbours go together.
  constexpr bool kOwnSlot = Cell::kSlot[kLast] != kLast;
  constexpr int kTogether = kOwnSlot ? kLast : Cell::kGates;
  typename Products<T>::Term terms[4];
  int count = 0;
  for (int d = 0; d < p.directions; ++d) {
    const RowSource<T> da = {values[d].da, values[d].da_width, rows.index};
    const T* w_ih = p.weights[d].w_ih;
    terms[count++] = {da, 0, w_ih, kTogether * H};
    if (kOwnSlot) terms[count++] = {da, Cell::kSlot[kLast] * H, w_ih + kTogether * H * I, H};
  }
  if (p.weights[0].w_ih)
    products.through(terms, count, own.begin, own.end, I, {p.grad_x, I, rows.index});
  else
    gates_gradient<Cell>(p, rows, values, own);
  if (!p.lengths) return;
  const Range steps(p.steps, rank, size);
  for (int64_t t = steps.begin; t < steps.end; ++t)
    for (int64_t i = timeline.alive(t); i < p.batch; ++i)
      memset(p.grad_x + timeline.row(t, timeline.batch_row(i)) * I, 0, I * sizeof(T));
}

FASTRNN_NAMESPACE_END
