// Memory of a call: one block of workspace, and a hint about large outputs.
//
// Memory fresh from the system is mapped page by page at first touch; at 4 KiB that costs more
// than the arithmetic of many a layer (bench/NOTES.md). Large blocks therefore ask for pages of
// 2 MiB. It is a hint: where the system has none, nothing changes.
#pragma once

#include <stdlib.h>

#include "../core/platform.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

FASTRNN_NAMESPACE_BEGIN

constexpr int64_t kHugePage = 2 << 20;

// Asks for huge pages in the part of [data, data + bytes) that consists of whole ones.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (!data || bytes < 2 * kHugePage) return;
  const uintptr_t begin = ((uintptr_t)data + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = ((uintptr_t)data + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Blocks up to this size come back from the allocator already mapped: glibc stops asking the system
// for them after the first one was freed. (With a larger alignment it would ask each time: the
// alignment counts as size, and the limit follows the sizes freed.)
constexpr int64_t kReused = 32 << 20;

// A block that is freed with its scope; data is null when there is no memory.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(int64_t bytes) { allocate(bytes); }
  void allocate(int64_t bytes) {
    free(data_);
    const int64_t alignment = bytes > kReused ? kHugePage : 64;
    bytes = (bytes + alignment) / alignment * alignment;
    data_ = (char*)aligned_alloc(alignment, bytes);
    prefer_huge_pages(data_, bytes);
  }
  ~Workspace() { free(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

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
