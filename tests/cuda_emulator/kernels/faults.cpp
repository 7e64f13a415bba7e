// One kernel for each mistake that the emulator reports: threads of a block among themselves, and
// memory. For blocks among each other see exchange.cpp.
#include "cuda/device.cuh"

namespace fastrnn {

struct Memory {
  float* data;  // what the test says it is
  int count;
};

// ---- Barriers and exchanges that not everybody reaches

__global__ void returns_before_barrier(Memory) {
  if (threadIdx.x == 37) return;
  sync_block();
}
__global__ void half_the_block_at_the_barrier(Memory args) {
  if (threadIdx.x < 32)
    sync_block();
  else if (args.count > 0)
    (void)shuffle(1, 0);
}
__global__ void lane_returns_before_shuffle(Memory) {
  if (threadIdx.x == 37) return;
  (void)shuffle(1, 0);
}
__global__ void lanes_in_different_functions(Memory) {
  if (threadIdx.x % 2)
    (void)any_of_warp(true);
  else
    sync_warp();
}
__global__ void lane_at_the_barrier(Memory) {
  if (threadIdx.x == 7) sync_block();
  sync_warp();
}
__global__ void waits_without_arriving(Memory) { cluster_wait(); }
__global__ void arrives_twice(Memory) {
  cluster_arrive();
  cluster_arrive();
}
__global__ void arrives_and_returns(Memory) { cluster_arrive(); }
__global__ void block_returns_before_the_cluster(Memory) {
  if (cluster_rank() == 1) return;
  cluster_arrive();
  cluster_wait();
}
static __global__ void stops(const __grid_constant__ Memory) {
  if (threadIdx.x == 37) trap();
}

// ---- Spins that cannot end

__global__ void nobody_stores(Memory args) {
  const unsigned* flags = (const unsigned*)args.data;
  if (threadIdx.x == 0) {
    while (load_acquire(flags + 1) == 0) {
    }
  }
  sync_block();
}
__global__ void nobody_stores_anywhere(Memory args) {  // polls many flags in turn
  const unsigned* flags = (const unsigned*)args.data;
  for (int i = 0; load_acquire(flags + i) == 0;) i = (i + 1) % args.count;
}
__global__ void waits_for_every_block(Memory args) {
  unsigned* flags = (unsigned*)args.data;
  if (threadIdx.x == 0) {
    store_release(flags + blockIdx.x, 1);
    for (unsigned block = 0; block < gridDim.x; block++)
      while (load_acquire(flags + block) == 0) {
      }
  }
}
__global__ void goes_on_forever(Memory args) {
  while (args.count) sync_block();
}

// ---- Memory. Blocks of 64 threads with as many floats of shared memory.

__global__ void no_block_barrier(Memory args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = float(threadIdx.x);
  args.data[threadIdx.x] = shared[threadIdx.x ^ 32];
}
__global__ void no_second_block_barrier(Memory args) {
  float* shared = shared_memory<float>();
  for (int t = 0; t < 2; t++) {
    shared[threadIdx.x] = float(threadIdx.x);
    sync_block();
    args.data[threadIdx.x] += shared[threadIdx.x ^ 32];
  }
}
__global__ void no_warp_barrier(Memory args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = float(threadIdx.x);
  (void)shuffle(1, 0);  // exchanges registers and orders no memory
  args.data[threadIdx.x] = shared[threadIdx.x ^ 1];
}
__global__ void two_blocks_write(Memory args) {
  if (threadIdx.x == blockIdx.x) args.data[7] = 1;
}
__global__ void halves_of_a_word(Memory args) {  // neighbours, no race
  ((Half*)args.data)[threadIdx.x] = to_half(float(threadIdx.x));
}
__global__ void writes_beyond_shared(Memory) { shared_memory<float>()[threadIdx.x + 1] = 1; }
__global__ void writes_before_shared(Memory) { shared_memory<float>()[int(threadIdx.x) - 1] = 1; }
__global__ void writes_far_beyond_shared(Memory) { shared_memory<float>()[50000] = 1; }
__global__ void reads_beyond_shared(Memory args) {
  args.data[threadIdx.x] = shared_memory<float>()[threadIdx.x + 1];
}
__global__ void writes_beyond_a_buffer(Memory args) {
  if (threadIdx.x == 0) args.data[args.count] = 0;
}
__global__ void reads_before_a_buffer(Memory args) {
  if (threadIdx.x == 0) args.data[0] = args.data[-1];
}
__global__ void misaligned(Memory args) {
  if (threadIdx.x > 0) return;
  const Vector16 v = *(const Vector16*)args.data;
  *(Vector16*)(args.data + 1) = v;
}
__global__ void misaligned_exchange(Memory args) {
  args.data[0] = float(load_exchanged(args.data + 1).word[0]);
}
__global__ void copies_beyond_a_buffer(Memory args) {
  if (threadIdx.x == 0) memcpy(args.data, args.data + args.count - 4, 32);
}
__global__ void copies_without_barrier(Memory args) {
  memcpy(shared_memory<float>() + threadIdx.x, args.data + threadIdx.x, sizeof(float));
  memset(shared_memory<float>() + (threadIdx.x ^ 32), 0, sizeof(float));
}
__device__ Vector16* shared_vector(int i) { return shared_memory<Vector16>() + i % 16; }
// The first 16 threads copy 16 bytes each, and read them.
__device__ void begin_own_copy(Memory args) {
  if (threadIdx.x < 16) begin_copy(shared_vector(int(threadIdx.x)), args.data + 4 * threadIdx.x);
}
__device__ void read_own_copy(Memory args) {
  if (threadIdx.x < 16) args.data[128 + threadIdx.x] = shared_memory<float>()[4 * threadIdx.x];
}
__global__ void copy_not_waited_for(Memory args) {
  begin_own_copy(args);
  close_copies();
  read_own_copy(args);
  wait_copies<0>();
}
__global__ void copy_of_an_open_group(Memory args) {
  begin_own_copy(args);
  wait_copies<0>();
  read_own_copy(args);
}
__global__ void one_copy_too_few(Memory args) {
  begin_own_copy(args);
  close_copies();
  wait_copies<1>();
  read_own_copy(args);
}
__global__ void copy_over_a_copy(Memory args) {
  for (int i = 0; i < 2; i++) {
    begin_own_copy(args);
    close_copies();
  }
  wait_copies<0>();
}
__global__ void copy_without_barrier(Memory args) {
  begin_own_copy(args);
  close_copies();
  wait_copies<0>();
  args.data[threadIdx.x + 128] = shared_memory<float>()[threadIdx.x];
}
__global__ void copy_over_what_others_read(Memory args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = 1;
  sync_block();
  args.data[threadIdx.x + 128] = shared[63 - threadIdx.x];
  begin_own_copy(args);
  close_copies();
  wait_copies<0>();
}
__global__ void copy_to_global(Memory args) {
  begin_copy((Vector16*)args.data, args.data + 4);
  close_copies();
  wait_copies<0>();
}
__global__ void misaligned_copy(Memory args) {
  begin_copy(shared_vector(0), args.data + 1);
  close_copies();
  wait_copies<0>();
}
__global__ void returns_during_a_copy(Memory args) { begin_own_copy(args); }
__global__ void remote_of_global(Memory args) { *remote(args.data, 0) = 1; }
__global__ void remote_of_no_block(Memory) { *remote(shared_memory<float>(), 2) = 1; }
__global__ void unset_local(Memory args) {
  float sums[4];
  if (args.count < 0) sums[0] = sums[1] = sums[2] = sums[3] = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
  if (threadIdx.x == 0)
    for (int i = 0; i < 4; i++) args.data[i] = sums[i];
#pragma GCC diagnostic pop
}

}  // namespace fastrnn

#if !defined(__CUDACC_RTC__)  // NVRTC compiles the kernels, for the GPU that they are written for

#include "entry.h"

using namespace fastrnn;

#define ENTRY(kernel)                                                          \
  extern "C" const char* run_##kernel(const Launch* how, const Memory* args) { \
    return fastrnn_guarded([&] {                                               \
      allow_most(kernel, device_properties(0, #kernel), #kernel);              \
      launch(kernel, *how, *args, #kernel);                                    \
    });                                                                        \
  }
ENTRY(returns_before_barrier)
ENTRY(half_the_block_at_the_barrier)
ENTRY(lane_returns_before_shuffle)
ENTRY(lanes_in_different_functions)
ENTRY(lane_at_the_barrier)
ENTRY(waits_without_arriving)
ENTRY(arrives_twice)
ENTRY(arrives_and_returns)
ENTRY(block_returns_before_the_cluster)
ENTRY(stops)
ENTRY(nobody_stores)
ENTRY(nobody_stores_anywhere)
ENTRY(waits_for_every_block)
ENTRY(goes_on_forever)
ENTRY(no_block_barrier)
ENTRY(no_second_block_barrier)
ENTRY(no_warp_barrier)
ENTRY(two_blocks_write)
ENTRY(halves_of_a_word)
ENTRY(writes_beyond_shared)
ENTRY(writes_before_shared)
ENTRY(writes_far_beyond_shared)
ENTRY(reads_beyond_shared)
ENTRY(writes_beyond_a_buffer)
ENTRY(reads_before_a_buffer)
ENTRY(misaligned)
ENTRY(misaligned_exchange)
ENTRY(copies_beyond_a_buffer)
ENTRY(copies_without_barrier)
ENTRY(copy_not_waited_for)
ENTRY(copy_of_an_open_group)
ENTRY(one_copy_too_few)
ENTRY(copy_over_a_copy)
ENTRY(copy_without_barrier)
ENTRY(copy_over_what_others_read)
ENTRY(copy_to_global)
ENTRY(misaligned_copy)
ENTRY(returns_during_a_copy)
ENTRY(remote_of_global)
ENTRY(remote_of_no_block)
ENTRY(unset_local)

// What the host's plan asks.
extern "C" const char* run_residency(const Launch* how, int answers[2]) {
  return fastrnn_guarded([&] {
    allow_most(stops, device_properties(0, "residency"), "residency");
    answers[0] = resident_blocks(stops, *how, "residency");
    answers[1] = resident_clusters(stops, *how, "residency");
  });
}
extern "C" void properties(int answers[4]) {
  const DeviceProperties device = device_properties(0, "properties");
  answers[0] = device.capability;
  answers[1] = device.processors;
  answers[2] = device.shared_bytes;
  answers[3] = device.max_cluster;
}

#endif
