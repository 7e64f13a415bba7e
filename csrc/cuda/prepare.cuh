// The small kernels around the steps: what is computed once per call.
#pragma once

#include "layer.h"
#include "math.cuh"

FASTRNN_NAMESPACE_BEGIN

FASTRNN_DEVICE int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
FASTRNN_DEVICE int64_t global_threads() { return int64_t(gridDim.x) * blockDim.x; }

// Host numbers travel as arguments of a launch: no copy to wait for, no memory that a captured
// graph would read again later.
struct UploadArgs {
  static constexpr int kWords = 1000;
  uint32_t* out;
  int count;
  uint32_t words[kWords];
};
static __global__ void upload(const __grid_constant__ UploadArgs args) {
  for (int i = threadIdx.x; i < args.count; i += blockDim.x) args.out[i] = args.words[i];
}

// The caller's row of every dense row.
struct DenseRowsArgs {
  Timeline time;
  int64_t* index;
};
static __global__ void dense_rows(const __grid_constant__ DenseRowsArgs args) {
  const Timeline& time = args.time;
  for (int64_t n = global_thread(); n < time.steps * time.batch; n += global_threads()) {
    const int64_t t = n / time.batch, place = n % time.batch;
    if (place < time.alive(t)) args.index[time.dense_row(t, place)] = time.row(t, place);
  }
}

// Weights of a product as sequence.cuh reads them: bricks, zero beyond units and k. Value `slot` of
// unit v meets, in the rows of gate g of unit j, weights[g * gate + j * unit + slot * slot_step +
// v * value].
template <class Math>
struct PackArgs {
  const typename Math::Storage* weights;
  int64_t gate, unit, slot_step, value;
  int gates, width;
  int64_t units, values;  // values: units of the exchange
  int blocks;             // of 8 units in a group
  int groups, bricks;
  typename Math::Storage* out;
};
template <class Math>
__global__ void pack(const __grid_constant__ PackArgs<Math> a) {
  using S = typename Math::Storage;
  constexpr int kColumns = kBrickBytes / sizeof(S);
  const int64_t count = int64_t(a.groups) * a.bricks * a.blocks * a.gates * kBrickRows * kColumns;
  for (int64_t n = global_thread(); n < count; n += global_threads()) {
    int64_t rest = n / kColumns;
    const int r = int(rest % kBrickRows);
    rest /= kBrickRows;
    const int g = int(rest % a.gates);
    rest /= a.gates;
    const int block = int(rest % a.blocks);
    rest /= a.blocks;
    const int64_t k = rest % a.bricks * kColumns + n % kColumns, group = rest / a.bricks;
    const int64_t j = (group * a.blocks + block) * 8 + r;
    const int64_t v = k / (8 * a.width) * 8 + k % 8;
    S value = Math::exchanged(0);
    if (j < a.units && v < a.values) {
      const int64_t slot = k / 8 % a.width;
      value = a.weights[g * a.gate + j * a.unit + slot * a.slot_step + v * a.value];
      value = Math::exchanged(Math::load(value));
    }
    a.out[n] = value;
  }
}

// States before the first step, and what needs no step: last states of empty rows, zeros beyond
// the ends of rows.
template <class Math>
struct StartArgs {
  using S = typename Math::Storage;
  Timeline time;
  int64_t hidden, output;
  int directions;
  bool cell_state;
  const S *h0, *c0;              // (D, B, R), (D, B, H), or null
  typename Math::Number* state;  // (D, B, H) by place: c0, or h0 where a cell reads it; or null
  Exchange exchange;             // zero
  int64_t places;
  S *y, *h_n, *c_n;
  typename Math::Number* cell_states;
};
template <class Math>
__global__ void start(const __grid_constant__ StartArgs<Math> a) {
  using S = typename Math::Storage;
  using N = typename Math::Number;
  const int64_t B = a.time.batch, H = a.hidden, R = a.output;
  for (int64_t n = global_thread(); n < a.directions * B * H; n += global_threads()) {
    const int64_t j = n % H, place = n / H % B, d = n / H / B;
    const int64_t row = d * B + a.time.batch_row(place);
    const bool empty = a.time.length_of(place) == 0;
    const N c = a.c0 ? Math::load(a.c0[row * H + j]) : N(0);
    const N h = a.h0 && j < R ? Math::load(a.h0[row * R + j]) : N(0);
    if (a.state) a.state[(d * B + place) * H + j] = a.cell_state ? c : h;
    if (a.cell_state && empty) a.c_n[row * H + j] = Math::store(c);
    if (j >= R) continue;
    if (empty) a.h_n[row * R + j] = Math::store(h);
    for (int copy = 0; copy < 2; ++copy) {
      const int64_t at = (2 * d + copy) * a.places + place;
      ((S*)(a.exchange.rows + at * a.exchange.row_bytes))[exchange_index(j, 0, 1)] =
          Math::exchanged(h);
    }
  }
  if (!a.time.length || a.time.packed) return;
  const int64_t width = a.directions * (R > H ? R : H);
  for (int64_t n = global_thread(); n < a.time.steps * B * width; n += global_threads()) {
    const int64_t j = n % width, place = n / width % B, t = n / width / B;
    if (t < a.time.length_of(place)) continue;
    const int64_t row = a.time.row(t, place);
    if (j < a.directions * R) a.y[row * a.directions * R + j] = Math::store(N(0));
    if (a.cell_states && j < a.directions * H) a.cell_states[row * a.directions * H + j] = N(0);
  }
}

// The state that entered each step, which gradients of weights meet, from what forward saved.
template <class Math>
struct RestoreArgs {
  using S = typename Math::Storage;
  Timeline time;
  int64_t hidden, output, rows, reserve_width;
  int directions;
  const S *h0, *reserve;
  const typename Math::Number* cell_states;
  S* h_prev[2];  // (dense rows, R), or null
  S* mid[2];     // (dense rows, H) r h of gru_reset_before, o tanh(c) before a projection; or null
};
template <class Cell, class Math, bool kProjected>
__global__ void restore(const __grid_constant__ RestoreArgs<Math> a) {
  using N = typename Math::Number;
  const int64_t T = a.time.steps, B = a.time.batch, H = a.hidden, R = a.output;
  // h of a GRU follows from h before: a thread goes through all steps. Elsewhere each is on its
  // own.
  const int64_t parts = Cell::kDirect ? 1 : T;
  for (int64_t n = global_thread(); n < a.directions * parts * B * H; n += global_threads()) {
    const int64_t j = n % H, place = n / H % B, part = n / H / B % parts, d = n / H / B / parts;
    const Course course{T, d == 1};
    const int64_t length = a.time.length_of(place), batch_row = d * B + a.time.batch_row(place);
    if (Cell::kDirect ? length == 0 : part >= length) continue;
    const auto reserved = [&](int64_t t) {
      return a.reserve + (d * a.rows + a.time.row(t, place)) * a.reserve_width;
    };
    const auto output = [&](int64_t t, N h_prev) {
      N saved[Cell::kSaved], c = N(0);
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) saved[k] = Math::load(reserved(t)[k * H + j]);
      if constexpr (Cell::kCellState)
        c = a.cell_states[(a.time.row(t, place) * a.directions + d) * H + j];
      return Cell::output(saved, c, h_prev);
    };
    N h = a.h0 && j < R ? Math::load(a.h0[batch_row * R + j]) : N(0);
    const int64_t first = course.first(length), last = course.last(length);
    int64_t t = Cell::kDirect ? first : part;
    while (true) {
      if constexpr (!Cell::kDirect)
        if (t != first && j < R) {
          const int64_t before = course.previous(t);
          h = kProjected ? Math::load(reserved(before)[Cell::kSaved * H + j])
                         : output(before, N(0));
        }
      if (a.time.is_reset(t, place)) h = N(0);
      const int64_t dense = a.time.dense_row(t, place);
      if (a.h_prev[d] && j < R) a.h_prev[d][dense * R + j] = Math::store(h);
      if (a.mid[d])
        a.mid[d][dense * H + j] =
            Math::store(kProjected ? output(t, N(0)) : Math::load(reserved(t)[j]) * h);
      if constexpr (!Cell::kDirect) break;
      if (t == last) break;
      h = output(t, h);
      t = course.next(t);
    }
  }
}

// Gradient of c0.
template <class Math>
struct FinishArgs {
  using S = typename Math::Storage;
  Timeline time;
  int64_t hidden;
  int directions;
  const S* grad_c_n;
  const typename Math::Number* dc;
  S* grad_c0;
};
template <class Math>
__global__ void finish(const __grid_constant__ FinishArgs<Math> a) {
  using N = typename Math::Number;
  const int64_t B = a.time.batch, H = a.hidden;
  for (int64_t n = global_thread(); n < a.directions * B * H; n += global_threads()) {
    const int64_t j = n % H, place = n / H % B, d = n / H / B;
    const int64_t length = a.time.length_of(place), at = (d * B + a.time.batch_row(place)) * H + j;
    const Course course{a.time.steps, d == 1};
    N dc = N(0);
    if (length == 0)
      dc = a.grad_c_n ? Math::load(a.grad_c_n[at]) : N(0);
    else if (!a.time.is_reset(course.first(length), place))
      dc = a.dc[n];
    a.grad_c0[at] = Math::store(dc);
  }
}

FASTRNN_NAMESPACE_END
