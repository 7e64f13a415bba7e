// Which accesses to memory are ordered, and which race: FastTrack's vector clocks.
//
// Only the checked build has them: there the compiler calls back at every access (races.cpp), and
// the emulator tells what orders accesses. In the other build all of this is nothing.
//
// What orders: a block's barrier, a warp's barrier (sync_warp; shuffles, votes and matrix products
// exchange registers and order no memory), the cluster's barrier from arrive to wait, and a release
// store with the acquire load that reads it. Nothing else: in particular not the order in which the
// emulator happens to run threads, so that a race is found in whatever order they ran.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <utility>
#include <vector>

namespace fastrnn::emulator {

struct Thread;
struct Block;
struct Cluster;

namespace races {

#if defined(FASTRNN_EMULATOR_CHECKED)

// Shared by reference within one thread of the operating system.
template <class T>
class Shared {
 public:
  Shared() = default;
  explicit Shared(T&& value) : counted_(new Counted{std::move(value), 1}) {}
  Shared(const Shared& other) : counted_(other.counted_) {
    if (counted_) counted_->references++;
  }
  Shared(Shared&& other) noexcept : counted_(std::exchange(other.counted_, nullptr)) {}
  Shared& operator=(Shared other) noexcept {
    std::swap(counted_, other.counted_);
    return *this;
  }
  ~Shared() {
    if (counted_ && --counted_->references == 0) delete counted_;
  }
  explicit operator bool() const { return counted_; }
  const T& operator*() const { return counted_->value; }
  const T* operator->() const { return &counted_->value; }
  bool operator==(const Shared& other) const { return counted_ == other.counted_; }

 private:
  struct Counted {
    T value;
    int references;
  };
  Counted* counted_ = nullptr;
};

// A thread's time counts its releases. Times of a block's threads, by rank:
using Times = Shared<std::vector<uint32_t>>;
// What a thread knows to have happened: times by rank of the block, in ascending order.
using Clock = Shared<std::vector<std::pair<int64_t, Times>>>;

struct ThreadClock {
  Clock known;  // of others
  uint32_t time = 1;
  Clock arrived;  // at the cluster's barrier
};
struct ClusterClock {
  Clock passed;  // the barrier's last phase
};

void launch_begins();
void block_begins(const Block& block);
void thread_begins(Thread& thread);
void warp_passes(Block& block, int warp);
void block_passes(Block& block);
void cluster_arrives(Thread& thread);
void cluster_passes(Cluster& cluster);
void cluster_waited(Thread& thread);
void releases(Thread& thread, const void* address);
void acquires(Thread& thread, const void* address);

enum class Access { kRead, kWrite, kAtomicRead, kAtomicWrite };
// An access by the current thread from the instruction at pc.
void access(const void* address, size_t bytes, Access kind, const void* pc);
// Writes by a copy of the current thread: from its beginning until it has been waited for, every
// access races with it, the thread's own too.
void copy_begins(const void* to, size_t bytes, const void* pc);
void copy_ends(const void* to, size_t bytes);

#else

struct ThreadClock {};
struct ClusterClock {};

inline void launch_begins() {}
inline void block_begins(const Block&) {}
inline void thread_begins(Thread&) {}
inline void warp_passes(Block&, int) {}
inline void block_passes(Block&) {}
inline void cluster_arrives(Thread&) {}
inline void cluster_passes(Cluster&) {}
inline void cluster_waited(Thread&) {}
inline void releases(Thread&, const void*) {}
inline void acquires(Thread&, const void*) {}

enum class Access { kRead, kWrite, kAtomicRead, kAtomicWrite };
inline void access(const void*, size_t, Access, const void*) {}
inline void copy_begins(const void*, size_t, const void*) {}
inline void copy_ends(const void*, size_t) {}

#endif

}  // namespace races
}  // namespace fastrnn::emulator
