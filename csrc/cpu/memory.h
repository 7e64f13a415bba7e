// Memory of a call: one block of workspace, and a hint about large outputs.
//
// Memory fresh from the system is mapped page by page at first touch; at 4 KiB that costs more
// than the arithmetic of many a layer (bench/NOTES.md). Large blocks therefore ask for pages of
// 2 MiB. It is a hint: where the system has none, nothing changes.
#pragma once

#include <stdlib.h>

#include "../core/arena.h"
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

// A block of memory that is freed with its scope; data is null when there is none.
class Block {
 public:
  Block() = default;
  explicit Block(int64_t bytes) {
    const int64_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
    size_ = (bytes + alignment) / alignment * alignment;
    data_ = (char*)aligned_alloc(alignment, size_);
    if (!data_) size_ = 0;
    prefer_huge_pages(data_, size_);
  }
  ~Block() { free(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  char* data() const { return data_; }
  int64_t size() const { return size_; }
  void swap(Block& other) {
    char* const data = data_;
    const int64_t size = size_;
    data_ = other.data_, size_ = other.size_;
    other.data_ = data, other.size_ = size;
  }

 private:
  char* data_ = nullptr;
  int64_t size_ = 0;
};

// The memory of a call. A thread keeps its largest one, up to kKept bytes, for its next call: that
// is mapped, and partly still in the cache. (What the allocator would give lies elsewhere at each
// call, as results come and go beside it.)
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(int64_t bytes) { allocate(bytes); }
  ~Workspace() {
    if (block_.size() <= kKept && block_.size() > kept().size()) block_.swap(kept());
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void allocate(int64_t bytes) {
    if (kept().size() >= bytes) {
      block_.swap(kept());
    } else {
      Block(bytes).swap(block_);
    }
  }
  char* data() const { return block_.data(); }

 private:
  static constexpr int64_t kKept = 32 << 20;
  static Block& kept() {
    static thread_local Block block;
    return block;
  }

  Block block_;
};

FASTRNN_NAMESPACE_END
