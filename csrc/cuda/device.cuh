// The one file that touches the hardware: everything a kernel asks of a GPU beyond C++, and the few
// calls of the CUDA runtime that start kernels.
//
// Compiled by nvcc and NVRTC it is the real thing. With FASTRNN_CUDA_EMULATOR the host compiler
// takes the same functions from tests/cuda_emulator, which runs kernels on the CPU; with
// FASTRNN_CUDA_RECORDER from csrc/launches, which writes down what is to be started.
//
// Every kernel is a `__global__ void kernel(Args)` with one argument, a plain struct.
#pragma once

#include "../core/scalar.h"

FASTRNN_NAMESPACE_BEGIN

// Storage of the 16-bit dtypes; arithmetic is in float.
struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

// The unit of every wide access.
struct alignas(16) Vector16 {
  unsigned word[4];
};

// How a kernel is started.
struct Launch {
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 32;      // of a block, in x
  unsigned cluster = 1;       // blocks of a cluster, in x; divides grid[0]
  unsigned shared_bytes = 0;  // dynamic shared memory of a block
  void* stream = nullptr;     // cudaStream_t
  bool cooperative = false;   // all blocks run at the same time, or the launch fails
};

constexpr unsigned kPortableCluster = 8;  // blocks that every device with clusters can have

// What is asked of a device, once.
struct DeviceProperties {
  int capability = 0;    // 10 * major + minor
  int processors = 0;    // multiprocessors
  int shared_bytes = 0;  // dynamic shared memory a block may ask for
  // Blocks of the largest cluster to ask for; 1 where there are none. Those of more than
  // kPortableCluster run where resident_clusters() says so.
  int max_cluster = 1;
};

FASTRNN_NAMESPACE_END

#if defined(FASTRNN_CUDA_EMULATOR)

#include "emulator.h"

#elif defined(FASTRNN_CUDA_RECORDER)

#include "../launches/recorder.h"

#else

#define FASTRNN_DEVICE __device__ __forceinline__

FASTRNN_NAMESPACE_BEGIN

// ---- Threads and barriers

template <class T>
FASTRNN_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

FASTRNN_DEVICE void sync_block() { __syncthreads(); }
FASTRNN_DEVICE void sync_warp() { __syncwarp(); }

template <class T>
FASTRNN_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
FASTRNN_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
FASTRNN_DEVICE Half shuffle(Half value, int lane) {
  return {(unsigned short)shuffle(unsigned(value.bits), lane)};
}
FASTRNN_DEVICE BFloat16 shuffle(BFloat16 value, int lane) {
  return {(unsigned short)shuffle(unsigned(value.bits), lane)};
}
FASTRNN_DEVICE bool all_of_warp(bool value) { return __all_sync(0xffffffffu, value); }
FASTRNN_DEVICE bool any_of_warp(bool value) { return __any_sync(0xffffffffu, value); }

// An offset, computed here: the compiler would do so where it is used, behind a barrier for
// example.
FASTRNN_DEVICE int64_t computed(int64_t offset) {
  asm volatile("" : "+l"(offset));
  return offset;
}

// Ends the kernel with an error.
FASTRNN_DEVICE void trap() { __trap(); }

// ---- Memory shared between blocks

FASTRNN_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
FASTRNN_DEVICE void store_release(unsigned* p, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// 16 bytes of global memory that another block may have written during this kernel, after its
// flag was acquired.
FASTRNN_DEVICE Vector16 load_exchanged(const void* p) {
  Vector16 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(p)
               : "memory");
  return v;
}

// ---- Copies from global to shared memory that go on beside the calling thread. They belong to
// groups: all that a thread has begun since it closed the group before.

// 16 bytes. Nobody may touch `shared` until the copy's group has been waited for.
FASTRNN_DEVICE void begin_copy(Vector16* shared, const void* global) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
}
FASTRNN_DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all of the thread's groups but the last kStillOpen are there for this thread; for others
// after a barrier.
template <int kStillOpen>
FASTRNN_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kStillOpen) : "memory");
}

// ---- Clusters. Where the device has none, a cluster is one block and its barrier that block's.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
FASTRNN_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
FASTRNN_DEVICE unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// What was written before arriving is seen after waiting, in the shared memory of every block of
// the cluster. Every thread arrives and waits.
FASTRNN_DEVICE void cluster_arrive() {
  __syncwarp();  // "aligned": all lanes at once
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
FASTRNN_DEVICE void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of another block of the cluster.
template <class T>
FASTRNN_DEVICE T* remote(T* shared, unsigned rank) {
  unsigned long long address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(address);
}
#else
FASTRNN_DEVICE unsigned cluster_rank() { return 0; }
FASTRNN_DEVICE unsigned cluster_size() { return 1; }
FASTRNN_DEVICE void cluster_arrive() {}
FASTRNN_DEVICE void cluster_wait() { __syncthreads(); }
template <class T>
FASTRNN_DEVICE T* remote(T* shared, unsigned) {
  return shared;
}
#endif

// ---- Numbers

FASTRNN_DEVICE float to_float(Half h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
  return f;
}
FASTRNN_DEVICE Half to_half(float f) {
  Half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
  return h;
}
FASTRNN_DEVICE float to_float(BFloat16 b) { return __uint_as_float(unsigned(b.bits) << 16); }
FASTRNN_DEVICE BFloat16 to_bfloat16(float f) {
  BFloat16 b;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(f));
  return b;
}
// The nearest value with the mantissa of TF32, ties away from zero.
FASTRNN_DEVICE float to_tf32(float f) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
  return __uint_as_float(bits);
}

// ---- Matrix fragments: d += a b for the whole warp. With r = lane / 4 and q = lane % 4, a lane
// has of d (16 x 8) the places (r, 2q) (r, 2q+1) (r+8, 2q) (r+8, 2q+1).

// Two values a register. Of a (16 x 16): (r, 2q..) (r+8, 2q..) (r, 2q+8..) (r+8, 2q+8..); of b
// (16 x 8): (2q.., r) (2q+8.., r).
FASTRNN_DEVICE void mma_16x8x16_half(float d[4], const unsigned a[4], const unsigned b[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FASTRNN_DEVICE void mma_16x8x16_bfloat16(float d[4], const unsigned a[4], const unsigned b[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// One TF32 value a register. Of a (16 x 8): (r, q) (r+8, q) (r, q+4) (r+8, q+4); of b (8 x 8):
// (q, r) (q+4, r).
FASTRNN_DEVICE void mma_16x8x8_tf32(float d[4], const unsigned a[4], const unsigned b[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FASTRNN_NAMESPACE_END

#if !defined(__CUDACC_RTC__)

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

FASTRNN_NAMESPACE_BEGIN

// ---- The host's side. `what` is the operator that asks, for the message of an error.

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error of the past must not be blamed on the next call
  throw std::runtime_error(std::string("fastrnn: ") + what + ": " + cudaGetErrorString(status));
}

// Lets a kernel have all the shared memory and all the clusters that the current device has. Once,
// before it is asked about or started there: a launch must not set what it needs itself, as that of
// another thread, which needs less, would take it back.
template <class Args>
void allow_most(void (*kernel)(Args), const DeviceProperties& device, const char* what) {
  const auto set = [&](cudaFuncAttribute which, int value) {
    check(cudaFuncSetAttribute((const void*)kernel, which, value), what);
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
  if (device.max_cluster > int(kPortableCluster))
    set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

inline cudaLaunchConfig_t configuration(const Launch& launch, cudaLaunchAttribute attributes[2]) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(launch.grid[0], launch.grid[1], launch.grid[2]);
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = cudaStream_t(launch.stream);
  config.attrs = attributes;
  if (launch.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (launch.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = launch.cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  return config;
}

template <class Args>
void launch(void (*kernel)(Args), const Launch& how, const Args& args, const char* what) {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configuration(how, attributes);
  check(cudaLaunchKernelEx(&config, kernel, args), what);
}

// Blocks of a kernel that one multiprocessor holds at the same time.
template <class Args>
int resident_blocks(void (*kernel)(Args), const Launch& how, const char* what) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, int(how.threads),
                                                      how.shared_bytes),
        what);
  return blocks;
}

// Clusters of a kernel that the device holds at the same time: none of those that it cannot have. A
// part of a device may have no room for those of a size that is portable, and then says so by an
// error; what it says to larger ones is not written down.
template <class Args>
int resident_clusters(void (*kernel)(Args), const Launch& how, const char* what) {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configuration(how, attributes);
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  const bool none = status == cudaErrorInvalidClusterSize ||
                    status == cudaErrorInvalidConfiguration ||
                    (status != cudaSuccess && how.cluster > kPortableCluster);
  if (!none) check(status, what);
  if (status != cudaSuccess) cudaGetLastError();
  return none ? 0 : clusters;
}

// Why the current device cannot run a kernel; empty where it can.
template <class Args>
std::string without_code(void (*kernel)(Args), const char* what) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status != cudaErrorNoKernelImageForDevice && status != cudaErrorInvalidDeviceFunction &&
      status != cudaErrorUnsupportedPtxVersion) {
    check(status, what);
    return {};
  }
  cudaGetLastError();
  std::string compiled;
  for (const int arch : {__CUDA_ARCH_LIST__})
    compiled += (compiled.empty() ? "" : ", ") + std::to_string(arch / 100) + "." +
                std::to_string(arch / 10 % 10);
  return std::string(cudaGetErrorString(status)) + " (kernels are compiled for " + compiled + ")";
}

inline int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

// The driver is asked once: a call of it for each number, in each call of a layer, would add up.
inline DeviceProperties device_properties(int device, const char* what) {
  static std::mutex mutex;
  static std::map<int, DeviceProperties> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), what);
    return value;
  };
  DeviceProperties result;
  result.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                      attribute(cudaDevAttrComputeCapabilityMinor);
  result.processors = attribute(cudaDevAttrMultiProcessorCount);
  result.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  result.max_cluster = attribute(cudaDevAttrClusterLaunch) ? 2 * int(kPortableCluster) : 1;
  return known[device] = result;
}

// The device of the calls in a scope. To go back to one that nobody uses would make a context
// there, which takes memory. It does not come to that: in the same thread torch has just allocated
// on `device`, and going back it leaves such a one aside, so `device` is current and nothing is
// set.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* what) {
    check(cudaGetDevice(&before_), what);
    if (before_ == device) return;
    check(cudaSetDevice(device), what);
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

FASTRNN_NAMESPACE_END

#endif  // NVRTC
#endif  // FASTRNN_CUDA_EMULATOR, FASTRNN_CUDA_RECORDER
