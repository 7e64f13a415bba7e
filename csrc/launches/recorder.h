// device.cuh where no CUDA compiler is: the host's side of the kernels, whose launches are written
// down for somebody else to make. fastrnn/backends/cupy.py makes them, with kernels that NVRTC
// compiled from the same sources.
//
// A kernel is its name here (../cuda/handles.cuh). What kernels call is declared, as the host's
// compiler reads their text too, and never defined.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define FASTRNN_DEVICE inline

FASTRNN_NAMESPACE_BEGIN

// ---- The kernel's side

struct Index3 {
  unsigned x, y, z;
};
extern const Index3 threadIdx, blockIdx, blockDim, gridDim;

template <class T>
T* shared_memory();
void sync_block();
void sync_warp();
template <class T>
T shuffle_xor(T value, int mask);
template <class T>
T shuffle(T value, int lane);
bool all_of_warp(bool value);
bool any_of_warp(bool value);
int64_t computed(int64_t offset);
void trap();
unsigned load_acquire(const unsigned* p);
void store_release(unsigned* p, unsigned value);
Vector16 load_exchanged(const void* p);
void begin_copy(Vector16* shared, const void* global);
void close_copies();
template <int kLeft>
void wait_copies();
unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive();
void cluster_wait();
template <class T>
T* remote(T* shared, unsigned rank);
float to_float(Half h);
Half to_half(float f);
float to_float(BFloat16 b);
BFloat16 to_bfloat16(float f);
float to_tf32(float f);
void mma_16x8x16_half(float d[4], const unsigned a[4], const unsigned b[2]);
void mma_16x8x16_bfloat16(float d[4], const unsigned a[4], const unsigned b[2]);
void mma_16x8x8_tf32(float d[4], const unsigned a[4], const unsigned b[2]);

// ---- The host's side

// A kernel to be compiled.
struct KernelName {
  std::string (*name)();  // as NVRTC takes it
  size_t argument_bytes;
};
template <class Args>
struct KernelOf : KernelName {};

// The name of a template with its arguments.
std::string instance(const char* of, const std::string& first);
std::string instance(const char* of, const std::string& first, const std::string& second);
std::string instance(const char* of, const std::string& first, const std::string& second,
                     const std::string& third);

// What is to be started.
struct Recorded {
  const std::string* kernel = nullptr;
  size_t argument_bytes = 0;
  Launch how;
  std::unique_ptr<unsigned char[]> argument;
  std::unique_ptr<void*> parameters;  // as cuLaunchKernel takes them: the argument's address
};
// What this thread's last call has recorded.
std::vector<Recorded>& recorded();

// What a device is, which nobody here can ask: to be told before the first call on it.
void describe_device(int device, const DeviceProperties& properties);
// Answers how many blocks of a kernel a multiprocessor of a device holds.
using Residency = std::function<int(int device, const std::string& kernel, size_t argument_bytes,
                                    int threads, int shared_bytes)>;
void set_residency(Residency answer);

// A call begins.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* what);
};

void record(const KernelName& kernel, const Launch& how, const void* argument);

template <class Args>
void launch(const KernelOf<Args>& kernel, const Launch& how, const Args& args, const char*) {
  static_assert(std::is_trivially_copyable_v<Args>);
  static_assert(sizeof(Args) <= 4096, "the parameters of a kernel");
  record(kernel, how, &args);
}

// Who compiles a kernel allows it, and does so for the device that is there.
inline void allow_most(const KernelName&, const DeviceProperties&, const char*) {}
inline std::string without_code(const KernelName&, const char*) { return {}; }
int resident_blocks(const KernelName& kernel, const Launch& how, const char* what);
// There are no clusters here.
inline int resident_clusters(const KernelName&, const Launch&, const char*) { return 0; }
// None is known before it was described.
inline int device_count() { return 0; }
DeviceProperties device_properties(int device, const char* what);

FASTRNN_NAMESPACE_END
