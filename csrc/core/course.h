#pragma once

#include "platform.h"

FASTRNN_NAMESPACE_BEGIN

// The order in which a direction visits the steps.
struct Course {
  int64_t steps;
  bool reverse;

  FASTRNN_FN int64_t step(int64_t s) const { return reverse ? steps - 1 - s : s; }
  FASTRNN_FN int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  FASTRNN_FN int64_t next(int64_t t) const { return reverse ? t - 1 : t + 1; }
  // First and last step of a row of some length.
  FASTRNN_FN int64_t first(int64_t length) const { return reverse ? length - 1 : 0; }
  FASTRNN_FN int64_t last(int64_t length) const { return reverse ? 0 : length - 1; }
};

FASTRNN_NAMESPACE_END
