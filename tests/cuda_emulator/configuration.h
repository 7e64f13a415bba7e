// What the emulated device has, and how the emulator behaves. runner.py mirrors this struct.
#pragma once

#include <stdint.h>

namespace fastrnn::emulator {

// The defaults are an H100's, but with few multiprocessors: what a test asks for should have to
// come from the occupancy query.
struct Configuration {
  int64_t seed = 1;
  int64_t timeout_ms = 120000;  // of one launch

  int64_t multiprocessors = 8;
  int64_t multiprocessors_per_group = 4;  // clusters lie within a group (a GPC)
  int64_t blocks_per_multiprocessor = 32;
  int64_t threads_per_multiprocessor = 2048;
  int64_t threads_per_block = 1024;
  int64_t registers_per_multiprocessor = 65536;
  int64_t registers_per_thread = 128;  // what every kernel is taken to need
  int64_t shared_per_multiprocessor = 233472;
  int64_t shared_per_block = 232448;  // at most
  int64_t shared_reserved = 1024;     // of each block, for the system
  int64_t cluster_limit = 8;          // blocks of a cluster; 1: no clusters
  int64_t compute_capability = 90;
};

}  // namespace fastrnn::emulator
