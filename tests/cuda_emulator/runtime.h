// What emulator.h calls. Plain functions, so that a kernel's source is compiled without the
// machinery behind them.
#pragma once

#include <stdint.h>

#include <string>

#include "configuration.h"

namespace fastrnn::emulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  int64_t volume() const { return int64_t(x) * y * z; }
};

// How a kernel is started.
struct Shape {
  Dim3 grid;
  int threads = 32;  // of a block
  int cluster = 1;   // blocks of a cluster, in x
  int64_t shared_bytes = 0;
  bool cooperative = false;
};

// ---- The host's side

const Configuration& configuration();
int64_t resident_blocks(const Shape& shape);    // on one multiprocessor
int64_t resident_clusters(const Shape& shape);  // on the device
// Runs body(arguments) as every thread of the grid. The text of an error, or an empty one.
std::string launch(const void* kernel, const Shape& shape, void (*body)(const void*),
                   const void* arguments);

// A copy of the text that lives until the next one.
const char* keep(const char* text);

// ---- The kernel's side, in the order of device.cuh

Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
void* shared_memory();

void sync_block();
void sync_warp();
uint64_t shuffle(uint64_t bits, int source_lane);
uint32_t vote(bool value);  // a bit for each lane
[[noreturn]] void trap();

unsigned load_acquire(const unsigned* p);
void store_release(unsigned* p, unsigned value);
void load_exchanged(void* value, const void* p);  // 16 bytes

void begin_copy(void* shared, const void* global);  // 16 bytes
void close_copies();
void wait_copies(int still_open);  // groups of this thread

unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive();
void cluster_wait();
void* remote(void* shared, unsigned rank);

// d += a b, each lane with its part.
enum class Matrix { kHalf, kBFloat16, kTf32 };
struct Fragments {
  float d[4];
  unsigned a[4], b[2];
};
void multiply(Matrix dtype, Fragments& fragments);

}  // namespace fastrnn::emulator
