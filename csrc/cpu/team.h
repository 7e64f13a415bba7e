// Threads of one parallel region: a barrier between them and the split of the work.
#pragma once

#include <sched.h>
#include <time.h>

#include "../core/platform.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

FASTRNN_NAMESPACE_BEGIN

#if defined(_OPENMP)
inline int thread_rank() { return omp_get_thread_num(); }
inline int team_size() { return omp_get_num_threads(); }
#else
inline int thread_rank() { return 0; }
inline int team_size() { return 1; }
#endif

inline int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

// Returns when the counter has come to the target. Spins briefly, then gives its core away: the
// thread waited for may need that very core. The result is how many nanoseconds it did that.
inline int64_t wait_until(const uint64_t& counter, uint64_t target) {
  constexpr int kSpins = 2000;
  int64_t begin = 0;
  for (int spins = 0; __atomic_load_n(&counter, __ATOMIC_ACQUIRE) < target; ++spins) {
    if (spins < kSpins) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      if (!begin) begin = nanoseconds();
      sched_yield();
    }
  }
  return begin ? nanoseconds() - begin : 0;
}

// Sense by counting: each round adds `size` arrivals.
class Barrier {
 public:
  int64_t wait(int size) {
    if (size == 1) return 0;
    const uint64_t ticket = __atomic_fetch_add(&arrived_, 1u, __ATOMIC_ACQ_REL);
    return wait_until(arrived_, (ticket / size + 1) * size);
  }

 private:
  alignas(64) uint64_t arrived_ = 0;
};

// What a call finds out about the cores it runs on. One that other programs compute on is away for
// milliseconds at a time, and all threads of a call wait for the one on it. After such a call a
// thread makes the next ones alone: 2 of them, then 4, 8 ... up to 64, as long as those in between
// that try again find the core away still. Results do not depend on it. More threads than cores are
// what somebody wants to see.
class Crowd {
 public:
  // How many of so many threads a call should use now.
  static int usable(int threads) {
    State& state = own();
    if (state.alone == 0 || threads == 1) return threads;
    --state.alone;
    return 1;
  }

  // Each thread of a region reports, at its end, how long it took and how much of that it waited.
  void report(int size, int64_t took, int64_t waited) {
    constexpr int64_t kLeast = 100000;  // nanoseconds; less is the way of threads
    __atomic_store_n(&size_, size, __ATOMIC_RELAXED);
    if (waited > kLeast && waited > took * 0.6) __atomic_store_n(&late_, 1, __ATOMIC_RELAXED);
  }

  // The caller's conclusion, after all have reported.
  void conclude() const {
    if (size_ == 0) return;  // no region had more threads than one
    State& state = own();
    constexpr int kMost = 64;
    const int longer = state.turn < kMost ? 2 * state.turn : kMost;
    state.turn = late_ && size_ <= cores() ? longer : 1;
    state.alone = state.turn > 1 ? state.turn : 0;
  }

 private:
  struct State {
    int alone = 0;  // calls still to be made on one thread
    int turn = 1;   // how many those were at first; 1: none, all is well
  };
  static State& own() {
    static thread_local State state;
    return state;
  }
  static int cores() {
#if defined(_OPENMP)
    return omp_get_num_procs();
#else
    return 1;
#endif
  }

  int size_ = 0, late_ = 0;
};

// The time a thread spends in a region, for the crowd's report.
class Stopwatch {
 public:
  explicit Stopwatch(int size) : size_(size), begin_(size > 1 ? nanoseconds() : 0) {}

  // The end of the region: all threads meet. waited: before that.
  void stop(Barrier& end, int64_t waited, Crowd& crowd) const {
    if (size_ == 1) return;
    waited += end.wait(size_);
    crowd.report(size_, nanoseconds() - begin_, waited);
  }

 private:
  const int size_;
  const int64_t begin_;
};

// How many steps a layer has done, for the layer above that follows it on another thread.
class Progress {
 public:
  void publish(int64_t steps) { __atomic_store_n(&steps_, uint64_t(steps), __ATOMIC_RELEASE); }
  void wait_for(int64_t steps) const { (void)wait_until(steps_, uint64_t(steps)); }

 private:
  alignas(64) uint64_t steps_ = 0;
};

// The threads that work on one direction, as one of them sees it.
struct Team {
  int rank, size;
  Barrier* barrier;
  int64_t* waited;  // nanoseconds
  void wait() const { *waited += barrier->wait(size); }
};

// Part `rank` of `size` near-equal parts of [0, count).
struct Range {
  int64_t begin, end;
  Range(int64_t count, int rank, int size)
      : begin(count * rank / size), end(count * (rank + 1) / size) {}
};

// How a team divides a step. By rows: every thread runs its rows through all steps, no barrier,
// and streams all weights. By units: every thread keeps its share of the weights in its own
// cache for all steps, and all meet after each step.
enum class Split { rows, units };

// What one thread of a team owns: of the rows every stride-th from the first, of the units a range.
struct Part {
  Split split;
  Team team;

  int64_t first_row() const { return split == Split::rows ? team.rank : 0; }
  int64_t row_stride() const { return split == Split::rows ? team.size : 1; }

  // Units change hands in whole blocks.
  Range units(int64_t count, int64_t block) const {
    const bool divided = split == Split::units;
    Range result((count + block - 1) / block, divided ? team.rank : 0, divided ? team.size : 1);
    result.begin *= block;
    result.end = result.end * block < count ? result.end * block : count;
    return result;
  }

  // The panels of an operand that hold a range of units which begins with a panel.
  template <class Op>
  static Range panels(const Op& op, const Range& units) {
    Range result(0, 0, 1);
    result.begin = units.begin / op.shape.kUnits;
    result.end = (units.end + op.shape.kUnits - 1) / op.shape.kUnits;
    return result;
  }

  // Packs this thread's part: its own panels, or, where everybody needs all, an equal part.
  template <class Op>
  void pack(Op& op, const Range& own) const {
    const Range mine =
        split == Split::units ? panels(op, own) : Range(op.shape.panels(), team.rank, team.size);
    op.pack(mine.begin, mine.end);
  }

  // Units depend on all of h, so a team that shares rows meets after each stage.
  void meet() const {
    if (split == Split::units) team.wait();
  }
};

FASTRNN_NAMESPACE_END
