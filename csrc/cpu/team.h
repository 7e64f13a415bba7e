// Threads of one parallel region: a barrier between them and the split of the work.
#pragma once

#include <sched.h>

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

// Returns when the counter has come to the target. Spins briefly, then gives its core away: the
// thread waited for may need that very core.
inline void wait_until(const uint64_t& counter, uint64_t target) {
  constexpr int kSpins = 2000;
  int spins = 0;
  while (__atomic_load_n(&counter, __ATOMIC_ACQUIRE) < target) {
    if (++spins < kSpins) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      sched_yield();
    }
  }
}

// Sense by counting: each round adds `size` arrivals.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    const uint64_t ticket = __atomic_fetch_add(&arrived_, 1u, __ATOMIC_ACQ_REL);
    wait_until(arrived_, (ticket / size + 1) * size);
  }

 private:
  alignas(64) uint64_t arrived_ = 0;
};

// How many steps a layer has done, for the layer above that follows it on another thread.
class Progress {
 public:
  void publish(int64_t steps) { __atomic_store_n(&steps_, uint64_t(steps), __ATOMIC_RELEASE); }
  void wait_for(int64_t steps) const { wait_until(steps_, uint64_t(steps)); }

 private:
  alignas(64) uint64_t steps_ = 0;
};

// The threads that work on one direction.
struct Team {
  int rank, size;
  Barrier* barrier;
  void wait() const { barrier->wait(size); }
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
