// The small kernels around the steps: what is computed once per call. One launch prepares
// everything that the steps read; its parts are on their own, in whatever order blocks take them.
//
// Neighbouring lanes access neighbouring values throughout, and where a value lies is computed once
// for several of them: divisions cost more than what is loaded.
#pragma once

#include "layer.h"
#include "math.cuh"

FASTRNN_NAMESPACE_BEGIN

FASTRNN_DEVICE int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
FASTRNN_DEVICE int64_t global_threads() { return int64_t(gridDim.x) * blockDim.x; }

// Every value of `rows` rows of `width`: body(row, j), a warp for each kPiece of them.
constexpr int kPiece = 128;
FASTRNN_FN int64_t warps_for(int64_t rows, int64_t width, int piece = kPiece) {
  return rows * ((width + piece - 1) / piece);
}
template <int piece = kPiece, class Body>
FASTRNN_DEVICE void for_each_value(int64_t rows, int64_t width, const Body& body) {
  const int64_t of_row = warps_for(1, width, piece), warps = global_threads() / 32;
  for (int64_t n = global_thread() / 32; n < rows * of_row; n += warps) {
    const int64_t row = n / of_row, begin = (n - row * of_row) * piece;
    const int64_t end = begin + piece < width ? begin + piece : width;
    for (int64_t j = begin + threadIdx.x % 32; j < end; j += 32) body(row, j);
  }
}

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
    if (place < time.moment(t).alive()) args.index[time.dense_row(t, place)] = time.row(t, place);
  }
}

// Weights of a product as sequence.cuh reads them: bricks, zero beyond units and k. Value `slot` of
// unit v meets, in the rows of gate g of unit j, weights[g * gate + j * unit + slot * slot_step +
// v * value].
template <class Math>
struct Packing {
  const typename Math::Storage* weights;
  int64_t gate, unit, slot_step, value;
  int gates, width;
  int64_t units, values;  // values: units of the exchange
  int blocks;             // of 8 units in a group
  int groups, bricks;
  Vector16* out;  // (groups, bricks, blocks, gates, 32 lanes)

  // 16 units of one gate with one brick of k, a vector at a time.
  static constexpr int kChunkUnits = 16, kChunkVectors = 64;
  FASTRNN_FN int64_t unit_blocks() const { return int64_t(groups) * blocks; }
  FASTRNN_FN int64_t chunks() const { return (unit_blocks() + 1) / 2 * gates * bricks; }
};

// Sixteen units and two vectors of k for each warp, as weights lie in memory by rows (forward) or
// by columns (backward): of either, a warp reads and writes whole sectors of 32 bytes.
template <class Math>
FASTRNN_DEVICE void pack(const Packing<Math>& a) {
  using S = typename Math::Storage;
  using Chunk = Packing<Math>;
  constexpr int kColumns = kBrickBytes / sizeof(S), kValues = 16 / sizeof(S);
  for (int64_t n = global_thread(); n < a.chunks() * Chunk::kChunkVectors; n += global_threads()) {
    const int in_chunk = int(n % Chunk::kChunkVectors);
    // Fewer than 2^31 chunks: each has 1 KiB.
    const uint32_t chunk = uint32_t(n / Chunk::kChunkVectors), row = chunk / uint32_t(a.bricks);
    const int brick = int(chunk - row * uint32_t(a.bricks));
    const int g = int(row % uint32_t(a.gates));
    const int q = in_chunk / 32 * 2 + in_chunk % 2;
    const int64_t j = int64_t(row / uint32_t(a.gates)) * Chunk::kChunkUnits + in_chunk / 2 % 16;
    const uint32_t block = uint32_t(j / 8);
    if (block >= a.unit_blocks()) continue;
    // All values of a vector have the same slot: units of an exchange go in eights.
    const uint32_t k = uint32_t(brick) * kColumns + q * kValues;
    const uint32_t eight = k / 8 / uint32_t(a.width);
    const int64_t slot = k / 8 - eight * uint32_t(a.width), v = int64_t(eight) * 8 + k % 8;
    const S* from = a.weights + g * a.gate + j * a.unit + slot * a.slot_step + v * a.value;
    union {
      S values[kValues];
      Vector16 vector;
    } packed;
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      packed.values[i] = j < a.units && v + i < a.values
                             ? Math::exchanged(Math::load(from[i * a.value]))
                             : Math::exchanged(0);
    const uint32_t group = block / uint32_t(a.blocks), of_group = block - group * a.blocks;
    const int64_t place = ((int64_t(group) * a.bricks + brick) * a.blocks + of_group) * a.gates + g;
    a.out[place * 32 + j % 8 * 4 + q] = packed.vector;
  }
}

// What the preparation of both passes has in common.
template <class Math>
struct Preparation {
  Timeline time;
  int64_t hidden, output;
  int directions;
  Packing<Math> packings[2 * kMaxStages];
  int packed;  // of them
  struct {
    Vector16* begin;
    int64_t count;
  } zeros[2];
};
template <class Math>
FASTRNN_DEVICE void pack_and_zero(const Preparation<Math>& a) {
  for (int i = 0; i < a.packed; ++i) pack(a.packings[i]);
  for (const auto& zero : a.zeros)
    for (int64_t n = global_thread(); n < zero.count; n += global_threads())
      zero.begin[n] = Vector16{{0, 0, 0, 0}};
}

// States before the first step, and what needs no step: last states of empty rows, zeros beyond
// the ends of rows.
template <class Math>
struct StartArgs : Preparation<Math> {
  using S = typename Math::Storage;
  const S *h0, *c0;  // (D, B, R), (D, B, H), or null
  bool cell_state;
  typename Math::Number* state;  // (D, B, H) by place: c0, or h0 where a cell reads it; or null
  Exchange exchange;             // all of it is written
  int64_t places;
  S *y, *h_n, *c_n;
  typename Math::Number* cell_states;

  FASTRNN_FN int64_t exchange_rows() const { return this->directions * 2 * places; }
  FASTRNN_FN int64_t padding() const {
    return this->time.length && !this->time.packed ? this->time.steps * this->time.batch : 0;
  }
};
template <class Math>
__global__ void prepare_forward(const __grid_constant__ StartArgs<Math> a) {
  using S = typename Math::Storage;
  using N = typename Math::Number;
  const int64_t B = a.time.batch, H = a.hidden, R = a.output;
  pack_and_zero(a);
  const auto h = [&](int64_t row, int64_t j) {
    return a.h0 ? Math::load(a.h0[row * R + j]) : N(0);
  };
  for_each_value(a.directions * B, H, [&](int64_t n, int64_t j) {
    const int64_t d = n < B ? 0 : 1, place = n - d * B, row = d * B + a.time.batch_row(place);
    const bool empty = a.time.length_of(place) == 0;
    if (a.cell_state) {
      const N c = a.c0 ? Math::load(a.c0[row * H + j]) : N(0);
      if (a.state) a.state[n * H + j] = c;
      if (empty) a.c_n[row * H + j] = Math::store(c);
    } else if (a.state) {
      a.state[n * H + j] = h(row, j);
    }
    if (empty && j < R) a.h_n[row * R + j] = Math::store(h(row, j));
  });
  const int64_t width = a.exchange.row_bytes / int64_t(sizeof(S));
  for_each_value(a.exchange_rows(), width, [&](int64_t n, int64_t j) {
    const int64_t copy = n / a.places, place = n - copy * a.places;
    const bool is_state = place < B && j < R;  // which is the j-th value of its row
    const N value = is_state ? h(copy / 2 * B + a.time.batch_row(place), j) : N(0);
    ((S*)(a.exchange.rows + n * a.exchange.row_bytes))[j] = Math::exchanged(value);
  });
  for_each_value(a.padding(), a.directions * (R > H ? R : H), [&](int64_t n, int64_t j) {
    const int64_t t = n / B, place = n - t * B;
    if (t < a.time.length_of(place)) return;
    const int64_t row = a.time.row(t, place);
    if (j < a.directions * R) a.y[row * a.directions * R + j] = Math::store(N(0));
    if (a.cell_states && j < a.directions * H) a.cell_states[row * a.directions * H + j] = N(0);
  });
}

// The state that entered each step, which gradients of weights meet, from what forward saved.
//
// h of a GRU follows from h before, h' = n + z (h - n), so its steps go in parts: every part first
// gives how its last h depends on the h it begins with, then all of them go through their steps
// side by side, each from what those before it make of the initial state. Other cells need one step
// only to know h.
template <class Math>
struct RestoreArgs : Preparation<Math> {
  using S = typename Math::Storage;
  using N = typename Math::Number;
  int64_t rows, reserve_width;
  const S *h0, *reserve;
  const N* cell_states;
  S* h_prev[2];  // (dense rows, R), or null
  S* mid[2];     // (dense rows, H) r h of gru_reset_before, o tanh(c) before a projection; or null
  int64_t parts, part_steps;
  N *scale, *shift;  // (D, parts - 1, B, H): h after a part is scale h + shift; scale < 0: shift

  FASTRNN_FN bool needed() const { return h_prev[0] || h_prev[1] || mid[0] || mid[1]; }
};

// Steps of a part: enough of them, so that what was before it is read sooner than they are.
FASTRNN_FN int64_t steps_of_part(int64_t steps) {
  int64_t part = 32;
  while (part * part < steps) part *= 2;
  return part;
}

// A unit of a place in one direction, as forward left it.
template <class Cell, class Math, bool kProjected>
class Kept {
  using N = typename Math::Number;

 public:
  FASTRNN_DEVICE Kept(const RestoreArgs<Math>& args, int direction, int64_t place, int64_t unit)
      : a_(args), d_(direction), place_(place), j_(unit) {}

  FASTRNN_DEVICE N saved(int64_t t, int slot) const {
    return Math::load(reserved(t)[slot * a_.hidden + j_]);
  }
  FASTRNN_DEVICE N output(int64_t t, N h_prev) const {
    N saved[Cell::kSaved], c = N(0);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = this->saved(t, k);
    if constexpr (Cell::kCellState)
      c = a_.cell_states[(a_.time.row(t, place_) * a_.directions + d_) * a_.hidden + j_];
    return Cell::output(saved, c, h_prev);
  }
  FASTRNN_DEVICE N initial() const {
    const int64_t row = d_ * a_.time.batch + a_.time.batch_row(place_);
    return a_.h0 ? Math::load(a_.h0[row * a_.output + j_]) : N(0);
  }
  // What gradients of weights meet at step t, which h entered.
  FASTRNN_DEVICE void give(int64_t t, N h) const {
    const int64_t dense = a_.time.dense_row(t, place_), R = a_.output;
    if (a_.h_prev[d_] && j_ < R) a_.h_prev[d_][dense * R + j_] = Math::store(h);
    if (a_.mid[d_])
      a_.mid[d_][dense * a_.hidden + j_] =
          Math::store(kProjected ? output(t, N(0)) : saved(t, 0) * h);
  }

 private:
  FASTRNN_DEVICE const typename Math::Storage* reserved(int64_t t) const {
    return a_.reserve + (d_ * a_.rows + a_.time.row(t, place_)) * a_.reserve_width;
  }

  const RestoreArgs<Math>& a_;
  const int d_;
  const int64_t place_, j_;
};

// One step of every row, for cells without a direct path from h to h.
template <class Cell, class Math, bool kProjected>
FASTRNN_DEVICE void restore_steps(const RestoreArgs<Math>& a) {
  using N = typename Math::Number;
  const int64_t T = a.time.steps, B = a.time.batch;
  for_each_value(a.directions * T * B, a.hidden, [&](int64_t n, int64_t j) {
    const int d = n < T * B ? 0 : 1;
    const int64_t own = n - d * T * B, t = own / B, place = own - t * B;
    const int64_t length = a.time.length_of(place);
    if (t >= length) return;
    const Course course{T, d == 1};
    const Kept<Cell, Math, kProjected> kept(a, d, place, j);
    N h = N(0);
    if (a.h_prev[d] && j < a.output && !a.time.is_reset(t, place)) {
      const int64_t before = course.previous(t);
      if (t == course.first(length))
        h = kept.initial();
      else if constexpr (kProjected)
        h = kept.saved(before, Cell::kSaved);
      else
        h = kept.output(before, N(0));
    }
    kept.give(t, h);
  });
}

// How h after each part but the last of a row follows from h before it.
template <class Cell, class Math>
FASTRNN_DEVICE void summarize_parts(const RestoreArgs<Math>& a) {
  using N = typename Math::Number;
  const int64_t B = a.time.batch, before_last = (a.parts - 1) * B;
  for_each_value<32>(a.directions * before_last, a.hidden, [&](int64_t n, int64_t j) {
    const int d = n < before_last ? 0 : 1;
    const int64_t own = n - d * before_last, part = own / B, place = own - part * B;
    const int64_t length = a.time.length_of(place), end = (part + 1) * a.part_steps;
    if (end >= length) return;  // it is the row's last
    const Course course{length, d == 1};
    const Kept<Cell, Math, false> kept(a, d, place, j);
    N scale = N(1), shift = N(0);
    for (int64_t s = end - a.part_steps; s < end; ++s) {
      const int64_t t = course.step(s);
      if (a.time.is_reset(t, place)) scale = N(-1), shift = N(0);
      if (!(scale < N(0))) scale *= kept.saved(t, 1);
      shift = kept.output(t, shift);
    }
    a.scale[n * a.hidden + j] = scale;
    a.shift[n * a.hidden + j] = shift;
  });
}

// All steps, for cells with a direct path from h to h.
template <class Cell, class Math>
FASTRNN_DEVICE void restore_parts(const RestoreArgs<Math>& a) {
  using N = typename Math::Number;
  const int64_t B = a.time.batch;
  for_each_value<32>(a.directions * a.parts * B, a.hidden, [&](int64_t n, int64_t j) {
    const int d = n < a.parts * B ? 0 : 1;
    const int64_t own = n - d * a.parts * B, part = own / B, place = own - part * B;
    const int64_t length = a.time.length_of(place), begin = part * a.part_steps;
    if (begin >= length) return;
    const Course course{length, d == 1};
    const Kept<Cell, Math, false> kept(a, d, place, j);
    N h = kept.initial();
    for (int64_t p = 0; p < part; ++p) {
      const int64_t at = ((d * (a.parts - 1) + p) * B + place) * a.hidden + j;
      const N scale = a.scale[at], shift = a.shift[at];
      h = scale < N(0) ? shift : fma(scale, h, shift);
    }
    const int64_t end = begin + a.part_steps < length ? begin + a.part_steps : length;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t t = course.step(s);
      if (a.time.is_reset(t, place)) h = N(0);
      kept.give(t, h);
      h = kept.output(t, h);
    }
  });
}

template <class Cell, class Math, bool kProjected>
__global__ void prepare_backward(const __grid_constant__ RestoreArgs<Math> a) {
  pack_and_zero(a);
  if (!a.needed()) return;
  if constexpr (!Cell::kDirect)
    restore_steps<Cell, Math, kProjected>(a);
  else if (a.parts == 1)
    restore_parts<Cell, Math>(a);
  else
    summarize_parts<Cell, Math>(a);
}
// What is left of it where there are several parts.
template <class Cell, class Math>
__global__ void finish_restoring(const __grid_constant__ RestoreArgs<Math> a) {
  restore_parts<Cell, Math>(a);
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
  for_each_value(a.directions * B, H, [&](int64_t n, int64_t j) {
    const int64_t d = n < B ? 0 : 1, place = n - d * B;
    const int64_t length = a.time.length_of(place), at = (d * B + a.time.batch_row(place)) * H + j;
    const Course course{a.time.steps, d == 1};
    N dc = N(0);
    if (length == 0)
      dc = a.grad_c_n ? Math::load(a.grad_c_n[at]) : N(0);
    else if (!a.time.is_reset(course.first(length), place))
      dc = a.dc[n * H + j];
    a.grad_c0[at] = Math::store(dc);
  });
}

FASTRNN_NAMESPACE_END
