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

struct Timeline {
  int64_t steps = 0, batch = 0;
  const int64_t* offset = nullptr;  // (T + 1) dense rows before each step; null: all rows at each
  const int* length = nullptr;      // (B) by place; null: all steps
  const int* order = nullptr;       // (B) batch row of each place; null: the place
  bool packed = false;              // the caller's rows are dense
  const uint8_t* reset = nullptr;   // (T, B) or null, with the strides below
  int64_t reset_step = 0, reset_row = 0;

  FASTRNN_DEVICE int64_t alive(int64_t t) const {
    return offset ? offset[t + 1] - offset[t] : batch;
  }
  FASTRNN_DEVICE int64_t length_of(int64_t place) const { return length ? length[place] : steps; }
  FASTRNN_DEVICE int64_t batch_row(int64_t place) const { return order ? order[place] : place; }
  FASTRNN_DEVICE int64_t dense_row(int64_t t, int64_t place) const {
    return (offset ? offset[t] : t * batch) + place;
  }
  // Of the caller's tensors.
  FASTRNN_DEVICE int64_t row(int64_t t, int64_t place) const {
    return packed ? dense_row(t, place) : t * batch + batch_row(place);
  }
  FASTRNN_DEVICE bool is_reset(int64_t t, int64_t place) const {
    return reset && reset[t * reset_step + batch_row(place) * reset_row];
  }
};

FASTRNN_NAMESPACE_END
