// Starting a kernel of which nothing is known but its address and the bytes of its argument: as a
// driver does. runner.py finds the address by the kernel's name.
#include <string.h>

#include <array>
#include <utility>

#include "runtime.h"

namespace fastrnn::emulator {

namespace {

constexpr size_t kMostWords = 4096 / 8;  // of a kernel's parameters

// Passed as any plain struct of that size is.
template <size_t kWords>
struct Opaque {
  uint64_t words[kWords];
};

struct Call {
  const void* kernel;
  const void* argument;
};

template <size_t kWords>
void run(const void* call) {
  const Call& c = *static_cast<const Call*>(call);
  Opaque<kWords> argument;
  memcpy(&argument, c.argument, sizeof argument);
  ((void (*)(Opaque<kWords>))c.kernel)(argument);
}

// Structs of up to two words may travel in registers, each word by its type.
template <size_t... kWords>
constexpr auto table(std::index_sequence<kWords...>) {
  return std::array<void (*)(const void*), sizeof...(kWords)>{run<kWords + 3>...};
}
constexpr auto kRun = table(std::make_index_sequence<kMostWords - 2>());

}  // namespace

}  // namespace fastrnn::emulator

extern "C" {
__attribute__((visibility("default"))) const char* fastrnn_emulator_launch(
    const void* kernel, const unsigned grid[3], int threads, int64_t shared_bytes, int cooperative,
    const void* argument, int64_t argument_bytes) {
  using namespace fastrnn::emulator;
  const size_t words = size_t(argument_bytes) / 8;
  if (argument_bytes % 8 || words < 3 || words > kMostWords)
    return keep("invalid argument: a kernel's argument of that size");
  Shape shape;
  shape.grid = {grid[0], grid[1], grid[2]};
  shape.threads = threads, shape.shared_bytes = shared_bytes, shape.cooperative = cooperative;
  const Call call = {kernel, argument};
  const std::string error = launch(kernel, shape, kRun[words - 3], &call);
  return error.empty() ? nullptr : keep(error.c_str());
}

__attribute__((visibility("default"))) int fastrnn_emulator_resident_blocks(int threads,
                                                                            int64_t shared_bytes) {
  fastrnn::emulator::Shape shape;
  shape.threads = threads, shape.shared_bytes = shared_bytes;
  return int(fastrnn::emulator::resident_blocks(shape));
}
}
