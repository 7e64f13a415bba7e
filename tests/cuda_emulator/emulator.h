// device.cuh on the CPU: the same functions, for kernels that the host compiler compiles.
//
// Included by csrc/cuda/device.cuh under FASTRNN_CUDA_EMULATOR, after the structs it shares.
#pragma once

#include <string.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "numbers.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define FASTRNN_DEVICE inline

#define threadIdx (::fastrnn::emulator::thread_index())
#define blockIdx (::fastrnn::emulator::block_index())
#define blockDim (::fastrnn::emulator::block_size())
#define gridDim (::fastrnn::emulator::grid_size())

FASTRNN_NAMESPACE_BEGIN

// ---- Threads and barriers

template <class T>
T* shared_memory() {
  return static_cast<T*>(emulator::shared_memory());
}

inline void sync_block() { emulator::sync_block(); }
inline void sync_warp() { emulator::sync_warp(); }

template <class T>
T shuffle(T value, int lane) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what __shfl_sync takes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = emulator::shuffle(bits, lane & 31);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
inline Half shuffle(Half value, int lane) {
  return {(unsigned short)shuffle(unsigned(value.bits), lane)};
}
inline BFloat16 shuffle(BFloat16 value, int lane) {
  return {(unsigned short)shuffle(unsigned(value.bits), lane)};
}
template <class T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, int(threadIdx.x % 32) ^ mask);
}
inline bool all_of_warp(bool value) { return emulator::vote(value) == ~0u; }
inline bool any_of_warp(bool value) { return emulator::vote(value) != 0; }

inline int64_t computed(int64_t offset) { return offset; }

inline void trap() { emulator::trap(); }

// ---- Memory shared between blocks

inline unsigned load_acquire(const unsigned* p) { return emulator::load_acquire(p); }
inline void store_release(unsigned* p, unsigned value) { emulator::store_release(p, value); }
inline Vector16 load_exchanged(const void* p) {
  Vector16 v;
  emulator::load_exchanged(&v, p);
  return v;
}

inline void begin_copy(Vector16* shared, const void* global) {
  emulator::begin_copy(shared, global);
}
inline void close_copies() { emulator::close_copies(); }
template <int kStillOpen>
void wait_copies() {
  emulator::wait_copies(kStillOpen);
}

// ---- Clusters

inline unsigned cluster_rank() { return emulator::cluster_rank(); }
inline unsigned cluster_size() { return emulator::cluster_size(); }
inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }
template <class T>
T* remote(T* shared, unsigned rank) {
  return static_cast<T*>(emulator::remote(const_cast<std::remove_cv_t<T>*>(shared), rank));
}

// ---- Numbers

inline float to_float(Half h) { return emulator::float_of_half(h.bits); }
inline Half to_half(float f) { return {emulator::half_of_float(f)}; }
inline float to_float(BFloat16 b) { return emulator::float_of_bits(uint32_t(b.bits) << 16); }
inline BFloat16 to_bfloat16(float f) { return {emulator::bfloat16_of_float(f)}; }
inline float to_tf32(float f) { return emulator::tf32_of_float(f); }

// ---- Matrix fragments

template <emulator::Matrix kDtype>
void multiply_fragments(float d[4], const unsigned a[4], const unsigned b[2]) {
  emulator::Fragments fragments;
  memcpy(fragments.d, d, sizeof fragments.d);
  memcpy(fragments.a, a, sizeof fragments.a);
  memcpy(fragments.b, b, sizeof fragments.b);
  emulator::multiply(kDtype, fragments);
  memcpy(d, fragments.d, sizeof fragments.d);
}
inline void mma_16x8x16_half(float d[4], const unsigned a[4], const unsigned b[2]) {
  multiply_fragments<emulator::Matrix::kHalf>(d, a, b);
}
inline void mma_16x8x16_bfloat16(float d[4], const unsigned a[4], const unsigned b[2]) {
  multiply_fragments<emulator::Matrix::kBFloat16>(d, a, b);
}
inline void mma_16x8x8_tf32(float d[4], const unsigned a[4], const unsigned b[2]) {
  multiply_fragments<emulator::Matrix::kTf32>(d, a, b);
}

// ---- The host's side

inline emulator::Shape shape_of(const Launch& how) {
  emulator::Shape shape;
  shape.grid = {how.grid[0], how.grid[1], how.grid[2]};
  shape.threads = int(how.threads);
  shape.cluster = int(how.cluster);
  shape.shared_bytes = how.shared_bytes;
  shape.cooperative = how.cooperative;
  return shape;
}

inline void refuse(const char* what, const std::string& why) {
  throw std::runtime_error(std::string("fastrnn: ") + what + ": " + why);
}

// What kernels may have, by their address.
struct Allowed {
  int shared_bytes = 48 * 1024, cluster = kPortableCluster;
};
struct AllAllowed {
  std::mutex mutex;
  std::map<const void*, Allowed> kernels;
};
inline AllAllowed& all_allowed() {
  static AllAllowed& instance = *new AllAllowed;
  return instance;
}

template <class Args>
void allow_most(void (*kernel)(Args), const DeviceProperties& device, const char*) {
  const std::lock_guard<std::mutex> lock(all_allowed().mutex);
  Allowed& allowed = all_allowed().kernels[(const void*)kernel];
  allowed.shared_bytes = std::max(allowed.shared_bytes, device.shared_bytes);
  allowed.cluster = std::max(allowed.cluster, device.max_cluster);
}

inline void check_allowed(const void* kernel, const Launch& how, const char* what) {
  const std::lock_guard<std::mutex> lock(all_allowed().mutex);
  const Allowed& allowed = all_allowed().kernels[kernel];
  if (int(how.shared_bytes) > allowed.shared_bytes)
    refuse(what, "invalid argument: " + std::to_string(how.shared_bytes) +
                     " bytes of shared memory a block, the kernel may have " +
                     std::to_string(allowed.shared_bytes));
  if (int(how.cluster) > allowed.cluster)
    refuse(what, "cluster misconfiguration: " + std::to_string(how.cluster) +
                     " blocks, the kernel may have " + std::to_string(allowed.cluster));
}

template <class Args>
struct Call {
  void (*kernel)(Args);
  Args args;

  __attribute__((no_sanitize("thread"))) static void run(const void* call) {
    static_cast<const Call*>(call)->kernel(static_cast<const Call*>(call)->args);
  }
};

// Returns when the kernel has ended. Throws for what the driver refuses, and for every fault of the
// kernel that the emulator finds.
template <class Args>
void launch(void (*kernel)(Args), const Launch& how, const Args& args, const char* what) {
  static_assert(std::is_trivially_copyable_v<Args>);
  static_assert(sizeof(Args) <= 4096, "the parameters of a kernel");
  check_allowed((const void*)kernel, how, what);
  const Call<Args> call = {kernel, args};
  const std::string error = emulator::launch((const void*)kernel, shape_of(how), Call<Args>::run,
                                             static_cast<const void*>(&call));
  if (!error.empty()) refuse(what, error);
}

inline void check_asked(const void* kernel, const Launch& how, const char* what) {
  check_allowed(kernel, how, what);
  if (how.shared_bytes > emulator::configuration().shared_per_block)
    refuse(what,
           "invalid argument: " + std::to_string(how.shared_bytes) + " bytes of shared memory");
}

template <class Args>
int resident_blocks(void (*kernel)(Args), const Launch& how, const char* what) {
  check_asked((const void*)kernel, how, what);
  return int(emulator::resident_blocks(shape_of(how)));
}

template <class Args>
int resident_clusters(void (*kernel)(Args), const Launch& how, const char* what) {
  check_asked((const void*)kernel, how, what);
  return int(emulator::resident_clusters(shape_of(how)));
}

// As if nvcc had compiled for Hopper and nothing else.
template <class Args>
std::string without_code(void (*)(Args), const char*) {
  if (emulator::configuration().compute_capability == 90) return {};
  return "no kernel image is available for execution on the device";
}

inline int device_count() { return 1; }

inline DeviceProperties device_properties(int, const char*) {
  const emulator::Configuration& c = emulator::configuration();
  DeviceProperties result;
  result.capability = int(c.compute_capability);
  result.processors = int(c.multiprocessors);
  result.shared_bytes = int(c.shared_per_block);
  result.max_cluster = int(c.cluster_limit);
  return result;
}

class DeviceGuard {
 public:
  DeviceGuard(int device, const char* what) {
    if (device != 0) throw std::runtime_error(std::string("fastrnn: ") + what + ": invalid device");
  }
};

FASTRNN_NAMESPACE_END
