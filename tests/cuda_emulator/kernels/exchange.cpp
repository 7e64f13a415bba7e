// Blocks that exchange values at every step, correctly and with each mistake that one can make.
#include "cuda/device.cuh"

namespace fastrnn {

// What is left out, or done at the wrong place.
enum class Mistake : int {
  kNone,
  kNoAcquire,       // does not wait for the others' flags
  kEarlyRelease,    // sets its flag before it has written
  kNoBlockBarrier,  // sets its flag when one thread has written
  kOneCopy,         // overwrites what others may still read
  kNoClusterBarrier,
  kNoLastClusterBarrier,  // returns while others read its shared memory
};

// One step: v'[i] = (v[i] + v[i + shift]) / 2 with i modulo N = blocks * threads.
struct Exchange {
  float* values;    // (N)
  float* copies;    // (2, N): of steps 0 2 4 ..., of steps 1 3 5 ...
  unsigned* flags;  // (blocks): steps written; zero at first
  int steps, shift;
  Mistake mistake;
};

// Through global memory and flags.
__global__ void through_global(Exchange args) {
  const int threads = int(blockDim.x), blocks = int(gridDim.x), n = threads * blocks;
  const int i = int(blockIdx.x) * threads + int(threadIdx.x);
  const Mistake mistake = args.mistake;
  float value = args.values[i];
  for (int t = 0; t < args.steps; t++) {
    float* copy = args.copies + (mistake == Mistake::kOneCopy ? 0 : t % 2 * n);
    if (mistake == Mistake::kEarlyRelease && threadIdx.x == 0)
      store_release(args.flags + blockIdx.x, unsigned(t + 1));
    copy[i] = value;
    if (mistake != Mistake::kNoBlockBarrier) sync_block();
    if (mistake != Mistake::kEarlyRelease && threadIdx.x == 0)
      store_release(args.flags + blockIdx.x, unsigned(t + 1));
    if (mistake != Mistake::kNoAcquire)
      for (int block = int(threadIdx.x) % 32; block < blocks; block += 32)
        while (load_acquire(args.flags + block) < unsigned(t + 1)) {
        }
    sync_warp();
    value = (value + copy[(i + args.shift) % n]) / 2;
  }
  args.values[i] = value;
}

// Through the shared memory of a cluster, which is the grid.
__global__ void through_cluster(Exchange args) {
  float* shared = shared_memory<float>();  // (2, threads)
  const int threads = int(blockDim.x), n = threads * int(cluster_size());
  const int me = int(threadIdx.x), i = int(cluster_rank()) * threads + me;
  const Mistake mistake = args.mistake;
  float value = args.values[i];
  for (int t = 0; t < args.steps; t++) {
    float* copy = shared + t % 2 * threads;
    copy[me] = value;
    if (mistake == Mistake::kNoClusterBarrier) {
      sync_block();
    } else {
      cluster_arrive();
      cluster_wait();
    }
    const int other = (i + args.shift) % n;
    value = (value + *remote(copy + other % threads, unsigned(other / threads))) / 2;
  }
  if (mistake != Mistake::kNoLastClusterBarrier) {
    cluster_arrive();
    cluster_wait();
  }
  args.values[i] = value;
}

}  // namespace fastrnn

#if !defined(__CUDACC_RTC__)  // NVRTC compiles the kernels, for the GPU that they are written for

#include "entry.h"

using namespace fastrnn;

extern "C" const char* run_through_global(const Launch* how, const Exchange* args) {
  return fastrnn_guarded([&] { launch(through_global, *how, *args, "through_global"); });
}
extern "C" const char* run_through_cluster(const Launch* how, const Exchange* args) {
  return fastrnn_guarded([&] { launch(through_cluster, *how, *args, "through_cluster"); });
}

#endif
