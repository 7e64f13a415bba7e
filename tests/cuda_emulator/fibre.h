// Fibres: stacks of their own that hand the processor to each other by a function call.
//
// A switch saves the registers that the calling convention says a callee must keep, and nothing
// else; ucontext would add a system call for the signal mask to each of them.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <vector>

// Saves the caller's state on its stack, whose pointer goes to *from, and continues what `to` was
// saved from.
extern "C" void fastrnn_switch_fibre(void** from, void* to);

namespace fastrnn::emulator {

// The stack pointer of a fibre that will run entry(), which must not return.
void* new_fibre(void* stack_top, void (*entry)());

// The stacks of a machine's threads, kept for the next launch. Below each lies a page that cannot
// be touched: a kernel that overflows its stack ends there and not in its neighbour's. So each is
// two mappings of the process, of which Linux allows 65530 (vm.max_map_count).
class Stacks {
 public:
  static constexpr size_t kBytes = 128 << 10, kGuard = 4096;

  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() { release(); }

  // Whether there are n now; if not, there are none: the process has other uses for its last
  // mappings.
  bool reserve(size_t n) {
    while (n > chunks_.size() * kChunk)
      if (!grow()) return release(), false;
    return true;
  }
  void release() {
    for (char* chunk : chunks_) munmap(chunk, kBytes * kChunk);
    chunks_.clear();
  }

  char* low(size_t i) const { return chunks_[i / kChunk] + i % kChunk * kBytes + kGuard; }
  // Staggered: with all tops at the same distance from a page, all fibres would share a few lines
  // of the cache.
  char* top(size_t i) const { return low(i) + (kBytes - kGuard) - 64 * (i % 61); }

 private:
  static constexpr size_t kChunk = 64;

  bool grow() {
    void* chunk = mmap(nullptr, kBytes * kChunk, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunk == MAP_FAILED) return false;
    chunks_.push_back((char*)chunk);
    for (size_t i = 0; i < kChunk; i++)
      if (mprotect((char*)chunk + i * kBytes, kGuard, PROT_NONE) != 0) {
        munmap(chunk, kBytes * kChunk);
        chunks_.pop_back();
        return false;
      }
    return true;
  }

  std::vector<char*> chunks_;
};

}  // namespace fastrnn::emulator
