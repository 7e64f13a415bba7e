#pragma once

#include "platform.h"

FASTRNN_NAMESPACE_BEGIN

// A bump allocator over one block of memory. With a null base it only measures.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    T* result = base_ ? (T*)(base_ + used_) : nullptr;
    used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return result;
  }
  int64_t used() const { return used_; }
  bool measuring() const { return base_ == nullptr; }

 private:
  char* base_;
  int64_t used_ = 0;
};

FASTRNN_NAMESPACE_END
