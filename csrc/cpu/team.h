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

// Sense by counting: each round adds `size` arrivals. Spins briefly, then gives its core away:
// the thread waited for may need that very core.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    const uint64_t ticket = __atomic_fetch_add(&arrived_, 1u, __ATOMIC_ACQ_REL);
    const uint64_t target = (ticket / size + 1) * size;
    int spins = 0;
    while (__atomic_load_n(&arrived_, __ATOMIC_ACQUIRE) < target) {
      if (++spins < kSpins) {
#if defined(__x86_64__)
        _mm_pause();
#endif
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 2000;
  alignas(64) uint64_t arrived_ = 0;
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

FASTRNN_NAMESPACE_END
