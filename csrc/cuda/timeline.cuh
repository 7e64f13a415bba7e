// Which rows are alive at which step, and where they lie, as kernels read it.
//
// A *place* is a batch row's position by decreasing length: the rows alive at a step are the first
// places. A *dense row* numbers the rows that exist, step by step and within a step by place: row t
// * batch + place of a full batch, packed data's own order, or that which data with lengths would
// have if it were packed. Workspaces are dense; tensors of the caller are not when there are
// lengths.
#pragma once

#include "../core/course.h"
#include "device.cuh"

FASTRNN_NAMESPACE_BEGIN

// A time of the caller's: its dense rows, of which each place alive at it has one.
struct Moment {
  int64_t first_row = 0, end_row = 0;
  int t = 0;

  FASTRNN_DEVICE int alive() const { return int(end_row - first_row); }
};

// A place: the batch row that has it, and the number of its steps.
struct Place {
  int index = 0, batch_row = 0, length = 0;
};

struct Timeline {
  int64_t steps = 0, batch = 0;
  const int64_t* offset = nullptr;  // (T + 1) dense rows before each step; null: all rows at each
  const int* length = nullptr;      // (B) by place; null: all steps
  const int* order = nullptr;       // (B) batch row of each place; null: the place
  bool packed = false;              // the caller's rows are dense
  const uint8_t* reset = nullptr;   // (T, B) or null, with the strides below
  int64_t reset_step = 0, reset_row = 0;

  FASTRNN_DEVICE Moment moment(int64_t t) const {
    if (!offset) return {t * batch, (t + 1) * batch, int(t)};
    return {offset[t], offset[t + 1], int(t)};
  }
  FASTRNN_DEVICE Place place(int64_t index) const {
    return {int(index), int(batch_row(index)), int(length_of(index))};
  }
  FASTRNN_DEVICE int64_t length_of(int64_t place) const { return length ? length[place] : steps; }
  FASTRNN_DEVICE int64_t batch_row(int64_t place) const { return order ? order[place] : place; }
  FASTRNN_DEVICE static int64_t dense_row(const Moment& moment, const Place& place) {
    return moment.first_row + place.index;
  }
  // Of the caller's tensors.
  FASTRNN_DEVICE int64_t row(const Moment& moment, const Place& place) const {
    return packed ? dense_row(moment, place) : moment.t * batch + place.batch_row;
  }
  // Not zero where the states that enter the step are reset. Not compared with zero yet: what
  // looks at a value waits for it.
  FASTRNN_DEVICE uint8_t reset_at(int64_t t, const Place& place) const {
    return reset ? reset[t * reset_step + place.batch_row * reset_row] : uint8_t(0);
  }

  // The same by step and place.
  FASTRNN_DEVICE int64_t dense_row(int64_t t, int64_t index) const {
    return (offset ? offset[t] : t * batch) + index;
  }
  FASTRNN_DEVICE int64_t row(int64_t t, int64_t index) const {
    return packed ? dense_row(t, index) : t * batch + batch_row(index);
  }
  FASTRNN_DEVICE bool is_reset(int64_t t, int64_t index) const {
    return reset_at(t, place(index)) != 0;
  }
};

FASTRNN_NAMESPACE_END
