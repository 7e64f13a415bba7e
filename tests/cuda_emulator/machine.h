// The emulated device while a kernel runs: blocks, warps and threads, and who may run next.
//
// Everything happens on the operating system's thread that called launch(): a CUDA thread is a
// fibre, and whenever one has to wait, the next is drawn with a seeded generator. The same seed
// therefore gives the same interleaving, and a fault found once can be looked at again. Two
// launches on two threads of the operating system do not meet.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fibre.h"
#include "races.h"
#include "runtime.h"

namespace fastrnn::emulator {

constexpr int kLanes = 32;

// xorshift64*.
struct Random {
  uint64_t state = 1;
  uint32_t next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return uint32_t(state * 0x2545F4914F6CDD1Dull >> 32);
  }
  uint32_t below(uint32_t n) { return uint32_t(uint64_t(next()) * n >> 32); }
};

struct Block;

enum class State : uint8_t { kReady, kAtWarp, kAtBlock, kAtCluster, kPolling, kReturned };

// Most used first, in a line of the cache of its own.
struct alignas(64) Thread {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  int rank = 0;  // within the block
  State state = State::kReturned;
  bool cluster_arrived = false;
  const char* waits_at = "";  // the function in which it waits
  void* exchange = nullptr;   // its part in the exchange between the lanes of its warp
  Dim3 index;
  char* stack_low = nullptr;
  uint64_t cluster_phase = 0;  // in which it arrived at the cluster's barrier

  // What atomic loads found lately: one that finds the same again is a spin, and waits.
  struct Poll {
    const void* address;
    uint64_t value;
  };
  Poll polls[4] = {};
  int next_poll = 0, polls_without_news = 0;
  uint64_t news = 0;  // the machine's, when it polled last

  // Copies that go on beside the thread, by group in the order of their beginning.
  struct Copy {
    void* to;
    const void* from;
    int group;
  };
  std::vector<Copy> copies;
  int copy_groups = 0;  // closed

  races::ThreadClock clock;

  int lane() const { return rank % kLanes; }
  int warp() const { return rank / kLanes; }
};

struct Warp {
  uint32_t ready = 0;     // a bit for each lane that can run
  uint32_t waiting = 0;   // for each lane that waits for the others,
  const char* at = "";    // in this function
  uint32_t returned = 0;  // for each lane that has returned from the kernel
  int first = 0;          // where the search for the next lane begins
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int threads = 0, threads_left = 0;
  int arrived = 0;
  uint64_t phase = 0;
  races::ClusterClock clock;
};

struct Block {
  Dim3 index;
  int64_t rank = 0;  // within the grid
  Cluster* cluster = nullptr;
  int cluster_rank = 0;
  char* shared = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  uint32_t ready_warps = 0;  // a bit for each warp with a lane that can run
  int arrived = 0, threads_left = 0;
};

// Global memory that kernels may access.
struct Buffer {
  int64_t bytes;
  std::string name;
};

// What tests ask for, of all threads of the process. Not to be changed while a kernel runs.
struct Settings {
  Configuration configuration;
  std::map<const char*, Buffer> buffers;  // by first byte; empty: everything may be accessed
  uint64_t changes = 0;                   // of the configuration
};
Settings& settings();

// One for each thread of the operating system that launches kernels.
struct Machine {
  uint64_t launches = 0;  // since the settings had this many changes:
  uint64_t settings_changes = 0;
  std::string report;   // of the fault that ended the last launch; empty if none did
  std::string message;  // of the last call through entry.h

  // The launch.
  std::string kernel;
  Shape shape;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  std::vector<std::unique_ptr<Cluster>> clusters;  // those that run now
  std::vector<int64_t> pending;                    // ranks of those that have not begun
  int64_t blocks_left = 0;
  Random random;
  int64_t deadline_ms = 0;

  // Memory.
  Stacks stacks;
  std::vector<char> shared;  // of all blocks that run now, each between two guard zones
  void* host = nullptr;      // the stack pointer of run_grid()

  std::shared_ptr<void> shadow;  // what races.cpp knows of memory

  // Scheduling. A warp keeps the processor for a burst of random length, and so does a block: some
  // run far ahead of others, as on a device where others are delayed.
  std::vector<Thread*> polling;
  uint64_t news = 1;       // atomic stores and returns
  int64_t idle_polls = 0;  // polls since then that were made because nobody could run
  Block* burst_block = nullptr;
  int burst_warp = 0, warp_burst = 0, block_burst = 0;
  uint32_t picks = 0;

  int64_t shared_stride() const;
};

// The thread that runs; null outside kernels.
extern thread_local Thread* current
    __attribute__((visibility("hidden"), tls_model("initial-exec")));
Machine& machine();

constexpr int64_t kGuardZone = 4096;   // bytes before and after each block's shared memory
constexpr int64_t kSlack = 256 << 10;  // around all of it: stray writes should not end the process
constexpr unsigned char kPoison = 0xFF;  // every floating-point type reads NaN

// Runs all blocks of the grid, in an order of its own; returns early after a fault.
void run_grid();
// A thread whose state has been set waits until it is ready and drawn.
void suspend();
void make_ready(Thread& thread);
// An atomic load found this value at the address / an atomic store was made there.
void polled(const void* address, uint64_t value);
void stored(const void* address);
// Every lane of a warp comes here with its exchange; the last one completes it for all.
void meet_warp(const char* function, void* exchange, void (*complete)(void* const exchange[]));

// Ends the launch with a report: goes to run_grid(), by throwing this where it is run_grid's stack.
struct FaultOnHost {};
[[noreturn]] void fail(const std::string& what);
std::string describe(const Thread& thread);
std::string describe_address(const void* address);
std::string describe_waiting();  // who waits where
// Fails if somebody has written beyond the block's shared memory.
void check_guard_zones(const Block& block);

}  // namespace fastrnn::emulator
