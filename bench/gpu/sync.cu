// What it costs blocks to wait for each other and to read what others wrote: the constants that
// csrc/cuda/plan.cpp chooses by (its struct Rates), measured on the GPU that is there.
//
// Everything is done with the functions of csrc/cuda/device.cuh that the recurrent kernels use, so
// that the figures are theirs; and so the tests can run it on the CPU, where the times mean
// nothing. Built as a shared library that bench/gpu/sync.py loads. Each figure is printed as soon
// as it is known.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/device.cuh"

#if !defined(FASTRNN_CUDA_EMULATOR)
#include <cooperative_groups.h>
#endif

namespace fastrnn {
namespace {

constexpr unsigned kThreads = 256;  // of a block, as in csrc/cuda/layer.h

// ---- Kernels. Each does `rounds` of what is measured.

struct Rounds {
  unsigned* flags = nullptr;   // (blocks), zero at first
  Vector16* values = nullptr;  // (2, kThreads)
  unsigned* others = nullptr;  // (kOthersRounds, blocks, kOthers, kThreads)
  int rounds = 0;
};

// What a training step stores for backward: gates, c and y. Nobody reads it in this kernel; but a
// barrier of a cluster and a flag's release wait until all that a thread has stored is on its way.
constexpr unsigned kOthers = 6;
constexpr unsigned kOthersRounds = 32;  // then from the start again
FASTRNN_DEVICE void store_others(const Rounds& args, int round) {
  const unsigned block = unsigned(round) % kOthersRounds * gridDim.x + blockIdx.x;
  unsigned* const out = args.others + size_t(block) * kOthers * kThreads + threadIdx.x;
#pragma unroll
  for (unsigned k = 0; k < kOthers; ++k) out[k * kThreads] = unsigned(round);
}

// Waits for a flag, but not for ever: what was printed before must come to its reader.
FASTRNN_DEVICE void wait_for(const unsigned* flag, unsigned n) {
  int polls = 0;
  while (load_acquire(flag) < n)
    if (++polls == 1 << 24) trap();
}

// This block has arrived for the n-th time, and waits until all have: the exchange of the grid
// regime, where every block reads what every other wrote.
FASTRNN_DEVICE void meet(unsigned* flags, unsigned n) {
  sync_block();
  if (threadIdx.x == 0) store_release(flags + blockIdx.x, n);
  for (unsigned block = threadIdx.x % 32; block < gridDim.x; block += 32)
    wait_for(flags + block, n);
  sync_warp();
}
__global__ void flag_barrier(Rounds args) {
  for (int r = 0; r < args.rounds; ++r) meet(args.flags, unsigned(r + 1));
}

// CUDA's own barrier of a grid, to compare with.
__global__ void grid_barrier(Rounds args) {
  for (int r = 0; r < args.rounds; ++r) {
#if defined(FASTRNN_CUDA_EMULATOR)
    meet(args.flags, unsigned(r + 1));
#else
    cooperative_groups::this_grid().sync();
#endif
  }
}

__global__ void block_barrier(Rounds args) {
  for (int r = 0; r < args.rounds; ++r) sync_block();
}
template <bool kStoring>
__global__ void cluster_barrier(Rounds args) {
  for (int r = 0; r < args.rounds; ++r) {
    cluster_arrive();
    if (kStoring) store_others(args, r);
    cluster_wait();
  }
}

// The first and the last block in turn: one has stored a flag, the other sees it. A round is two
// hops.
__global__ void flag_hop(Rounds args) {
  const unsigned last = gridDim.x - 1, me = blockIdx.x;
  if ((me != 0 && me != last) || threadIdx.x >= 32) return;
  unsigned* const mine = args.flags + me;
  const unsigned* const theirs = args.flags + (last - me);
  for (int r = 0; r < args.rounds; ++r) {
    if (me == 0 && threadIdx.x == 0) store_release(mine, unsigned(r + 1));
    wait_for(theirs, unsigned(r + 1));
    sync_warp();
    if (me != 0 && threadIdx.x == 0) store_release(mine, unsigned(r + 1));
  }
}

// The same with what the kernels do around it: all threads store a value, the block meets, one sets
// the flag; there every warp waits for it and reads. From a value's store to its use.
template <bool kStoring>
__global__ void value_hop(Rounds args) {
  const unsigned last = gridDim.x - 1, me = blockIdx.x, i = threadIdx.x;
  if (me != 0 && me != last) return;
  unsigned* const mine = args.flags + me;
  const unsigned* const theirs = args.flags + (last - me);
  Vector16* const out = args.values + (me == 0 ? 0 : kThreads);
  const Vector16* const in = args.values + (me == 0 ? kThreads : 0);
  Vector16 value = {{i, i, i, i}};
  const auto send = [&](unsigned n) {
    out[i] = value;
    sync_block();
    if (i == 0) store_release(mine, n);
    if (kStoring) store_others(args, int(n));
  };
  for (int r = 0; r < args.rounds; ++r) {
    if (me == 0) send(unsigned(r + 1));
    wait_for(theirs, unsigned(r + 1));
    sync_warp();
    value = load_exchanged(in + i);
    value.word[0] += 1;
    if (me != 0) send(unsigned(r + 1));
  }
}

// Two blocks of a cluster in turn store to each other's shared memory. A round is two hops.
__global__ void remote_hop(Rounds args) {
  unsigned* const word = shared_memory<unsigned>();
  const unsigned rank = cluster_rank();
  if (threadIdx.x == 0) *word = 0;
  cluster_arrive(), cluster_wait();
  volatile unsigned* const mine = word;
  volatile unsigned* const theirs = remote(word, rank ^ 1);
  if (threadIdx.x < 32)
    for (int r = 0; r < args.rounds; ++r) {
      if (rank == 0 && threadIdx.x == 0) *theirs = unsigned(r + 1);
      int polls = 0;
      while (!all_of_warp(*mine > unsigned(r)))
        if (++polls == 1 << 26) trap();
      if (rank == 1 && threadIdx.x == 0) *theirs = unsigned(r + 1);
    }
  cluster_arrive(), cluster_wait();  // nobody returns while it is written to
}

struct Reading {
  const Vector16* from = nullptr;
  int64_t vectors = 0;     // of a block, each round; a multiple of 8 * kThreads
  int64_t block_step = 0;  // from the vectors of a block to those of the next
  int rounds = 0;
  unsigned* sink = nullptr;  // (blocks, kThreads)
};

FASTRNN_DEVICE unsigned folded(const Vector16& v) {
  return v.word[0] ^ v.word[1] ^ v.word[2] ^ v.word[3];
}

// As the kernels read states: past the first-level cache, kInFlight loads of a thread at a time.
template <int kInFlight>
__global__ void read_global(Reading args) {
  const Vector16* const from = args.from + int64_t(blockIdx.x) * args.block_step;
  unsigned sum = 0;
  for (int r = 0; r < args.rounds; ++r)
    for (int64_t i = threadIdx.x; i < args.vectors; i += int64_t(kThreads) * kInFlight) {
      Vector16 v[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) v[k] = load_exchanged(from + i + int64_t(k) * kThreads);
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) sum ^= folded(v[k]);
    }
  args.sink[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// As the kernels read weights.
__global__ void read_shared(Reading args) {
  Vector16* const shared = shared_memory<Vector16>();
  for (int64_t i = threadIdx.x; i < args.vectors; i += kThreads) shared[i] = args.from[i];
  sync_block();
  unsigned sum = 0;
  for (int r = 0; r < args.rounds; ++r) {
    for (int64_t i = threadIdx.x; i < args.vectors; i += 8 * kThreads) {
#pragma unroll
      for (int k = 0; k < 8; ++k) sum ^= folded(shared[i + k * kThreads]);
    }
    sync_warp();  // or a compiler may read but once
  }
  args.sink[threadIdx.x] = sum;
}

// Arguments as large as those of the recurrent kernels.
struct Nothing {
  unsigned* never = nullptr;
  unsigned filling[254] = {};
};
__global__ void nothing(Nothing args) {
  if (args.never) *args.never = args.filling[threadIdx.x];
}

// ---- The host's side

const char* const kWhat = "sync";

void set_to_zero(void* memory, int64_t bytes) {
#if defined(FASTRNN_CUDA_EMULATOR)
  memset(memory, 0, size_t(bytes));
#else
  check(cudaMemset(memory, 0, size_t(bytes)), kWhat);
#endif
}

// Memory of the device, zeroed.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
#if defined(FASTRNN_CUDA_EMULATOR)
    own_.resize(size_t(bytes) / sizeof(Vector16) + 1);
    data_ = own_.data();
#else
    check(cudaMalloc(&data_, size_t(bytes)), kWhat);
#endif
    set_to_zero(data_, bytes);
  }
  ~Memory() {
#if !defined(FASTRNN_CUDA_EMULATOR)
    cudaFree(data_);
#endif
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
#if defined(FASTRNN_CUDA_EMULATOR)
  std::vector<Vector16> own_;
#endif
  void* data_ = nullptr;
};

double now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}
void synchronize() {
#if !defined(FASTRNN_CUDA_EMULATOR)
  check(cudaDeviceSynchronize(), kWhat);
#endif
}

#if !defined(FASTRNN_CUDA_EMULATOR)
class Event {
 public:
  Event() { check(cudaEventCreate(&event_), kWhat); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};
#endif

// Seconds that the device takes for what body() puts on a stream: the median of some runs.
template <class Body>
double seconds(const Body& body, void* stream = nullptr) {
  std::vector<double> found;
#if defined(FASTRNN_CUDA_EMULATOR)
  (void)stream;
  const double start = now();
  body();
  found.push_back(now() - start);
#else
  const Event start, end;
  for (int run = 0; run < 6; ++run) {  // the first one warms up
    check(cudaEventRecord(start, cudaStream_t(stream)), kWhat);
    body();
    check(cudaEventRecord(end, cudaStream_t(stream)), kWhat);
    check(cudaEventSynchronize(end), kWhat);
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end), kWhat);
    if (run) found.push_back(1e-3 * milliseconds);
  }
#endif
  std::sort(found.begin(), found.end());
  return found[found.size() / 2];
}

// A line for each figure: `figure NAME VALUE`, or `error NAME TEXT` where it could not be measured.
void add(const std::string& name, double value) {
  std::printf("figure %s %.9g\n", name.c_str(), value);
  std::fflush(stdout);
}
void complain(const std::string& name, const char* text) {
  std::printf("error %s %s\n", name.c_str(), text);
  std::fflush(stdout);
}
template <class Body>
void measure(const std::string& name, const Body& body) {
  try {
    add(name, body());
  } catch (const std::exception& error) {
    complain(name, error.what());
  }
}

class Benchmark {
 public:
  Benchmark(int device, int rounds, int64_t memory_bytes)
      : device_(device_properties(device, kWhat)), rounds_(rounds), memory_bytes_(memory_bytes) {}

  // What could leave the device useless comes last.
  void run() const {
    add("processors", device_.processors);
    add("shared_bytes", device_.shared_bytes);
    add("max_cluster", device_.max_cluster);
    launches();
    reading();
    barriers();
    clusters();
  }

 private:
  // Seconds for each of `rounds` rounds of a kernel.
  double per_round(void (*kernel)(Rounds), Launch how) const {
    how.threads = kThreads;
    const Memory flags(4 * int64_t(how.grid[0])), values(2 * kThreads * sizeof(Vector16));
    const Memory others(4 * int64_t(how.grid[0]) * kOthersRounds * kOthers * kThreads);
    const Rounds args = {flags.as<unsigned>(), values.as<Vector16>(), others.as<unsigned>(),
                         rounds_};
    const double total = seconds([&] {
      set_to_zero(args.flags, 4 * int64_t(how.grid[0]));
      launch(kernel, how, args, kWhat);
    });
    return total / rounds_;
  }
  static Launch blocks(int count, bool cooperative = true) {
    Launch how;
    how.grid[0] = unsigned(count), how.cooperative = cooperative;
    return how;
  }

  void barriers() const {
    const int all = device_.processors;
    measure("block_barrier", [&] { return per_round(block_barrier, blocks(1)); });
    for (const int count : {all / 4, all / 2, all}) {
      const std::string suffix = "_" + std::to_string(count);
      measure("grid_barrier" + suffix, [&] { return per_round(grid_barrier, blocks(count)); });
      measure("flag_barrier" + suffix, [&] { return per_round(flag_barrier, blocks(count)); });
    }
    measure("flag_hop", [&] { return per_round(flag_hop, blocks(all)) / 2; });
    measure("value_hop", [&] { return per_round(value_hop<false>, blocks(all)) / 2; });
    measure("value_hop_storing", [&] { return per_round(value_hop<true>, blocks(all)) / 2; });
  }

  void clusters() const {
    if (device_.max_cluster == 1) return;
    allow_most(cluster_barrier<false>, device_, kWhat);
    allow_most(cluster_barrier<true>, device_, kWhat);
    std::vector<unsigned> sizes = {2, 4, 8};
    if (device_.max_cluster > int(kPortableCluster)) sizes.push_back(16);
    for (const unsigned size : sizes) {
      const std::string suffix = "_" + std::to_string(size);
      Launch how = blocks(int(size), false);
      how.cluster = size, how.threads = kThreads;
      const auto plain = cluster_barrier<false>;
      measure("cluster_barrier" + suffix, [&] { return per_round(plain, how); });
      // Beside other clusters, as the kernels run it.
      const auto full = [&] {
        Launch all = how;
        all.grid[0] = size * unsigned(resident_clusters(plain, how, kWhat));
        return all;
      };
      const std::string name = "cluster_barrier_full" + suffix;
      measure(name, [&] { return per_round(plain, full()); });
      measure(name + "_storing", [&] { return per_round(cluster_barrier<true>, full()); });
      for (const int part : {8, 2, 1}) {
        how.shared_bytes = unsigned(device_.shared_bytes / part);
        measure("resident_clusters" + suffix + "_of_" + std::to_string(how.shared_bytes),
                [&] { return resident_clusters(plain, how, kWhat); });
      }
    }
    Launch pair = blocks(2, false);
    pair.cluster = 2, pair.shared_bytes = 128;
    measure("remote_hop", [&] { return per_round(remote_hop, pair) / 2; });
  }

  void launches() const {
    constexpr int kLaunches = 500;  // fewer than a stream queues before it makes the host wait
    const int count = rounds_ < kLaunches ? rounds_ : kLaunches;
    for (const int grid : {1, device_.processors}) {
      const std::string suffix = grid == 1 ? "_1" : "_full";
      Launch how = blocks(grid, false);
      how.threads = kThreads;
      const auto all = [&] {
        for (int i = 0; i < count; ++i) launch(nothing, how, Nothing(), kWhat);
      };
      measure("launch" + suffix, [&] { return seconds(all) / count; });
      measure("launch_host" + suffix, [&] {
        synchronize();
        const double start = now();
        all();
        const double took = now() - start;
        synchronize();
        return took / count;
      });
      measure("launch_graph" + suffix, [&] { return replayed(all, how) / count; });
    }
  }

  // Seconds for body() as a graph, where there are graphs.
  template <class Body>
  static double replayed(const Body& body, Launch& how) {
#if defined(FASTRNN_CUDA_EMULATOR)
    (void)how;
    return seconds(body);
#else
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), kWhat);
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), kWhat);
    how.stream = stream;
    body();
    how.stream = nullptr;
    check(cudaStreamEndCapture(stream, &graph), kWhat);
    check(cudaGraphInstantiate(&ready, graph, 0), kWhat);
    const double found =
        seconds([&] { check(cudaGraphLaunch(ready, stream), kWhat); }, (void*)stream);
    cudaGraphExecDestroy(ready), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
    return found;
#endif
  }

  // Bytes per second.
  double rate(void (*kernel)(Reading), int grid, int64_t bytes, int64_t block_step_bytes,
              int rounds, const Memory& from, unsigned shared_bytes = 0) const {
    constexpr int64_t kUnit = 8 * kThreads;
    const int64_t vectors = bytes / int64_t(sizeof(Vector16)) / kUnit * kUnit;
    const Memory sink(int64_t(grid) * kThreads * 4);
    const Reading args = {from.as<Vector16>(), vectors,
                          block_step_bytes / int64_t(sizeof(Vector16)), rounds,
                          sink.as<unsigned>()};
    Launch how = blocks(grid, false);
    how.threads = kThreads, how.shared_bytes = shared_bytes;
    const double total = seconds([&] { launch(kernel, how, args, kWhat); });
    return double(vectors) * sizeof(Vector16) * grid * rounds / total;
  }

  void reading() const {
    const int all = device_.processors;
    const int rounds = std::max(1, rounds_ / 20);
    // States: every block reads the same 128 KiB. Weights: each reads its own.
    const int64_t part = 128 << 10;
    try {
      const Memory small(all * part);
      measure("l2_one", [&] { return rate(read_global<8>, 1, part, 0, rounds, small); });
      measure("l2_one_2_in_flight",
              [&] { return rate(read_global<2>, 1, part, 0, rounds, small); });
      measure("l2_all_same", [&] { return rate(read_global<8>, all, part, 0, rounds, small); });
      measure("l2_all_own", [&] { return rate(read_global<8>, all, part, part, rounds, small); });
      const int64_t shared = std::min<int64_t>(part, device_.shared_bytes);
      allow_most(read_shared, device_, kWhat);
      measure("shared",
              [&] { return rate(read_shared, 1, shared, 0, rounds, small, unsigned(shared)); });
    } catch (const std::exception& error) {
      complain("l2", error.what());
    }
    measure("memory", [&] {
      const Memory large(memory_bytes_);
      const int grid = 8 * all;
      const int64_t each = memory_bytes_ / grid / int64_t(sizeof(Vector16)) * 16;
      return rate(read_global<8>, grid, each, each, 1, large);
    });
  }

  const DeviceProperties device_;
  const int rounds_;
  const int64_t memory_bytes_;
};

}  // namespace
}  // namespace fastrnn

// Prints all figures: seconds, bytes per second, counts.
extern "C" void fastrnn_sync(int device, int rounds, int64_t memory_bytes) {
  try {
    const fastrnn::DeviceGuard guard(device, "sync");
    fastrnn::Benchmark(device, rounds, memory_bytes).run();
  } catch (const std::exception& error) {
    fastrnn::complain("sync", error.what());
  }
}
