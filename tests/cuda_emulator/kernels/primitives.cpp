// Every function of device.cuh in a kernel that does little else.
#include "cuda/device.cuh"

namespace fastrnn {

struct Places {
  int* seen;  // (blocks, threads, 8)
};
__global__ void places(Places args) {
  const int rank =
      int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * int(blockDim.x) +
      int(threadIdx.x);
  int* seen = args.seen + 8 * rank;
  seen[0] += 1;  // each place once
  seen[1] = int(threadIdx.x);
  seen[2] = int(blockIdx.x);
  seen[3] = int(blockIdx.y);
  seen[4] = int(blockIdx.z);
  seen[5] = int(blockDim.x);
  seen[6] = int(cluster_rank());
  seen[7] = int(cluster_size());
}

struct Lanes {
  const double* in;   // (32)
  const int* source;  // (32)
  int mask;
  double* out;  // (6, 32)
};
__global__ void lanes(Lanes args) {
  const int lane = int(threadIdx.x);
  const double value = args.in[lane];
  args.out[lane] = shuffle(value, args.source[lane]);
  args.out[32 + lane] = double(shuffle_xor(float(value), args.mask));
  args.out[128 + lane] = double(to_float(shuffle(to_half(float(value)), args.source[lane])));
  args.out[160 + lane] = double(to_float(shuffle(to_bfloat16(float(value)), args.source[lane])));
  args.out[64 + lane] = any_of_warp(value > 30);
  args.out[computed(96 + lane)] = all_of_warp(value > 0);
}

struct Conversions {
  const float* in;
  int count;
  unsigned short* half;
  unsigned short* bfloat16;
  float* tf32;
  float* of_half;      // (65536): of every half
  float* of_bfloat16;  // (65536)
};
__global__ void conversions(Conversions args) {
  for (int i = int(threadIdx.x); i < args.count; i += int(blockDim.x)) {
    args.half[i] = to_half(args.in[i]).bits;
    args.bfloat16[i] = to_bfloat16(args.in[i]).bits;
    args.tf32[i] = to_tf32(args.in[i]);
  }
  for (int i = int(threadIdx.x); i < 65536; i += int(blockDim.x)) {
    args.of_half[i] = to_float(Half{(unsigned short)i});
    args.of_bfloat16[i] = to_float(BFloat16{(unsigned short)i});
  }
}

struct Products {
  int dtype;          // 0 half, 1 bfloat16, 2 TF32
  const unsigned* a;  // (32, 4)
  const unsigned* b;  // (32, 2)
  float* d;           // (32, 4)
};
__global__ void products(Products args) {
  const int lane = int(threadIdx.x);
  float* d = args.d + 4 * lane;
  const unsigned *a = args.a + 4 * lane, *b = args.b + 2 * lane;
  if (args.dtype == 0) mma_16x8x16_half(d, a, b);
  if (args.dtype == 1) mma_16x8x16_bfloat16(d, a, b);
  if (args.dtype == 2) mma_16x8x8_tf32(d, a, b);
}

struct Fresh {
  unsigned short* out;  // (blocks, count): what shared memory holds when a block begins
  int count;
};
__global__ void fresh(Fresh args) {
  unsigned short* shared = shared_memory<unsigned short>();
  for (int i = int(threadIdx.x); i < args.count; i += int(blockDim.x)) {
    args.out[int(blockIdx.x) * args.count + i] = shared[i];
    shared[i] = 1;
  }
}

// s += v for each step; v = s of the thread `shift` further on, through shared memory.
struct Rotations {
  float* values;  // (blocks, threads)
  int steps, shift;
};
__global__ void rotations(Rotations args) {
  float* shared = shared_memory<float>();
  const int threads = int(blockDim.x), me = int(threadIdx.x);
  float& result = args.values[int(blockIdx.x) * threads + me];
  float value = result;
  for (int t = 0; t < args.steps; t++) {
    shared[me] = value;
    sync_block();
    value += shared[(me + args.shift) % threads];
    sync_block();
  }
  result = value;
}

// Sums of rows of global memory, which come through shared memory while others are added: each
// thread copies 16 bytes of a row and adds those of its neighbour.
struct Pipeline {
  const float* rows;  // (steps, blocks, threads, 4)
  int steps;
  float* sums;  // (blocks, threads, 4)
};
__global__ void pipeline(Pipeline args) {
  constexpr int kPlaces = 3;
  const int threads = int(blockDim.x), me = int(threadIdx.x);
  Vector16* shared = shared_memory<Vector16>();
  const auto begin = [&](int step) {
    const int64_t row = int64_t(step) * gridDim.x + blockIdx.x;
    if (step < args.steps)
      begin_copy(shared + step % kPlaces * threads + me, args.rows + (row * threads + me) * 4);
    close_copies();
  };
  float sum[4] = {0, 0, 0, 0};
  for (int step = 0; step < kPlaces - 1; step++) begin(step);
  for (int step = 0; step < args.steps; step++) {
    wait_copies<kPlaces - 2>();
    sync_block();
    begin(step + kPlaces - 1);
    const float* own = (const float*)(shared + step % kPlaces * threads + (me + 1) % threads);
    for (int i = 0; i < 4; i++) sum[i] += own[i];
  }
  for (int i = 0; i < 4; i++) args.sums[(int(blockIdx.x) * threads + me) * 4 + i] = sum[i];
}

}  // namespace fastrnn

#if !defined(__CUDACC_RTC__)  // NVRTC compiles the kernels, for the GPU that they are written for

#include "entry.h"

using namespace fastrnn;

#define ENTRY(kernel, Args)                                                  \
  extern "C" const char* run_##kernel(const Launch* how, const Args* args) { \
    return fastrnn_guarded([&] { launch(kernel, *how, *args, #kernel); });   \
  }
ENTRY(places, Places)
ENTRY(lanes, Lanes)
ENTRY(conversions, Conversions)
ENTRY(products, Products)
ENTRY(fresh, Fresh)
ENTRY(rotations, Rotations)
ENTRY(pipeline, Pipeline)

#endif
