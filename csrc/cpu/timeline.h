// Which rows are alive at which step, and where they lie.
#pragma once

#include "../core/arguments.h"
#include "../core/course.h"
#include "memory.h"

FASTRNN_NAMESPACE_BEGIN

// Batch rows in order of decreasing length, so that the rows alive at a step are the first ones.
class Timeline {
 public:
  Timeline() = default;
  FASTRNN_ONCE Timeline(const Sizes& sizes, Arena& arena) : sizes_(&sizes) {
    const int64_t T = sizes.steps, B = sizes.batch;
    if (sizes.lengths || sizes.batch_sizes) {
      alive_ = arena.take<int64_t>(T);
      length_ = arena.take<int64_t>(B);
    }
    if (sizes.lengths) order_ = arena.take<int64_t>(B);
    if (sizes.batch_sizes) offset_ = arena.take<int64_t>(T);
    int64_t* count = sizes.lengths ? arena.take<int64_t>(T + 2) : nullptr;
    if (arena.measuring()) return;
    if (sizes.batch_sizes) {
      for (int64_t t = 0, offset = 0; t < T; ++t) {
        alive_[t] = sizes.batch_sizes[t];
        offset_[t] = offset;
        offset += alive_[t];
        for (int64_t b = 0; b < alive_[t]; ++b) length_[b] = t + 1;
      }
    } else if (sizes.lengths) {
      sort_by_length(count);
    }
  }

  int64_t alive(int64_t t) const { return alive_ ? alive_[t] : sizes_->batch; }
  int64_t length(int64_t i) const { return length_ ? length_[i] : sizes_->steps; }
  int64_t batch_row(int64_t i) const { return order_ ? order_[i] : i; }
  int64_t row(int64_t t, int64_t b) const { return (offset_ ? offset_[t] : t * sizes_->batch) + b; }
  bool reset(int64_t t, int64_t b) const {
    return sizes_->reset && sizes_->reset[t * sizes_->reset_step + b * sizes_->reset_row];
  }

 private:
  // Counting sort, stable; count has T + 2 entries.
  void sort_by_length(int64_t* count) {
    const int64_t T = sizes_->steps, B = sizes_->batch;
    for (int64_t n = 0; n < T + 2; ++n) count[n] = 0;
    for (int64_t b = 0; b < B; ++b) ++count[T - sizes_->lengths[b] + 1];
    for (int64_t n = 1; n < T + 2; ++n) count[n] += count[n - 1];
    // count[T - l] is now the number of rows longer than l.
    for (int64_t t = 0; t < T; ++t) alive_[t] = count[T - t];
    for (int64_t b = 0; b < B; ++b) {
      const int64_t i = count[T - sizes_->lengths[b]]++;
      order_[i] = b;
      length_[i] = sizes_->lengths[b];
    }
  }

  const Sizes* sizes_ = nullptr;
  int64_t* alive_ = nullptr;
  int64_t* length_ = nullptr;
  int64_t* order_ = nullptr;
  int64_t* offset_ = nullptr;
};

// The rows of one thread: every stride-th of the timeline's, which gives each thread its share
// of the long ones.
struct Rows {
  const Timeline& timeline;
  int64_t first, stride;

  int64_t count(int64_t total) const {
    return total > first ? (total - first + stride - 1) / stride : 0;
  }
  int64_t alive(int64_t t) const { return count(timeline.alive(t)); }
  int64_t index(int64_t i) const { return first + i * stride; }
  int64_t batch_row(int64_t i) const { return timeline.batch_row(index(i)); }
  int64_t length(int64_t i) const { return timeline.length(index(i)); }
};

FASTRNN_NAMESPACE_END
