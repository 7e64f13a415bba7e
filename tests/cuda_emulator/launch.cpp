// Starting kernels: what the device can hold, the launch itself, and the reports of faults.
#include <cxxabi.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <utility>

#include "machine.h"

namespace fastrnn::emulator {

namespace {

std::string text(const Dim3& d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

// The name of an exported function; of another one the place, which runner.py makes a line of.
std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info)) return "unknown";
  if (info.dli_saddr != kernel) {
    char place[32];
    snprintf(place, sizeof place, "[pc 0x%zx]",
             size_t((const char*)kernel - (const char*)info.dli_fbase) + 1);
    return place;
  }
  int status = 0;
  char* name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string result = status == 0 ? name : info.dli_sname;
  free(name);
  return result;
}

// What the driver says before it runs anything.
std::string refusal(const Shape& shape) {
  const Configuration& c = settings().configuration;
  if (shape.grid.volume() <= 0 || shape.grid.x > 0x7fffffff || shape.grid.y > 65535 ||
      shape.grid.z > 65535 || shape.threads < 1 || shape.threads > c.threads_per_block)
    return "invalid configuration argument: " + std::to_string(shape.threads) +
           " threads a block, grid " + text(shape.grid);
  if (shape.threads % kLanes)
    return "the emulator has whole warps only: " + std::to_string(shape.threads) + " threads";
  if (shape.shared_bytes > c.shared_per_block)
    return "invalid argument: " + std::to_string(shape.shared_bytes) +
           " bytes of shared memory a block, the device has " + std::to_string(c.shared_per_block);
  if (shape.cluster < 1 || shape.cluster > c.cluster_limit)
    return "cluster misconfiguration: " + std::to_string(shape.cluster) +
           " blocks, the device has at most " + std::to_string(c.cluster_limit);
  if (shape.grid.x % unsigned(shape.cluster))
    return "cluster misconfiguration: a grid of " + std::to_string(shape.grid.x) +
           " blocks in x is not made of clusters of " + std::to_string(shape.cluster);
  const int64_t clusters = shape.grid.volume() / shape.cluster;
  const int64_t resident =
      shape.cluster > 1 ? resident_clusters(shape) : resident_blocks(shape) * c.multiprocessors;
  if (resident == 0) return "too many resources requested for launch";
  if (shape.cooperative && clusters > resident)
    return "too many blocks in cooperative launch: " + std::to_string(clusters) +
           (shape.cluster > 1 ? " clusters" : " blocks") + ", the device holds " +
           std::to_string(resident);
  return "";
}

}  // namespace

int64_t Machine::shared_stride() const {
  return (shape.shared_bytes + 1023) / 1024 * 1024 + 2 * kGuardZone;
}

const char* keep(const char* text) {
  machine().message = text;
  return machine().message.c_str();
}

Settings& settings() {
  static Settings instance;
  return instance;
}

const Configuration& configuration() { return settings().configuration; }

int64_t resident_blocks(const Shape& shape) {
  const Configuration& c = settings().configuration;
  const int64_t threads = shape.threads;
  // What a kernel may use is bounded by its block: as with __launch_bounds__.
  const int64_t registers =
      std::min(c.registers_per_thread, c.registers_per_multiprocessor / threads / 8 * 8);
  return std::min({c.blocks_per_multiprocessor, c.threads_per_multiprocessor / threads,
                   c.registers_per_multiprocessor / (registers * threads),
                   c.shared_per_multiprocessor / (shape.shared_bytes + c.shared_reserved)});
}

int64_t resident_clusters(const Shape& shape) {
  const Configuration& c = settings().configuration;
  const int64_t blocks = resident_blocks(shape), group = c.multiprocessors_per_group;
  const int64_t rest = c.multiprocessors % group;
  return c.multiprocessors / group * (group * blocks / shape.cluster) +
         rest * blocks / shape.cluster;
}

std::string launch(const void* kernel, const Shape& shape, void (*body)(const void*),
                   const void* arguments) {
  Machine& m = machine();
  m.report.clear();
  m.kernel = kernel_name(kernel);
  m.shape = shape;
  m.body = body;
  m.arguments = arguments;
  if (std::exchange(m.settings_changes, settings().changes) != settings().changes) m.launches = 0;
  m.launches++;
  const std::string refused = refusal(shape);
  if (!refused.empty()) return refused;

  m.random.state =
      uint64_t(settings().configuration.seed) * 0x9E3779B97F4A7C15ull + m.launches * 2 + 1;
  for (int i = 0; i < 8; i++) m.random.next();
  const int64_t clusters = shape.grid.volume() / shape.cluster;
  // Only a cooperative launch may count on all of its blocks running at the same time. Of another
  // few run, and which ones nobody knows.
  const int64_t together = shape.cooperative ? clusters : 1 + m.random.below(3);
  m.clusters.clear();
  for (int64_t i = 0; i < std::min(clusters, together); i++)
    m.clusters.push_back(std::make_unique<Cluster>());
  m.pending.resize(size_t(clusters));
  for (int64_t i = 0; i < clusters; i++) {
    const int64_t place = m.random.below(uint32_t(i + 1));
    m.pending[size_t(i)] = m.pending[size_t(place)];
    m.pending[size_t(place)] = i;
  }
  m.blocks_left = shape.grid.volume();
  const size_t threads = m.clusters.size() * size_t(shape.cluster) * size_t(shape.threads);
  if (!m.stacks.reserve(threads))
    return "no stacks for " + std::to_string(threads) +
           " threads: the process has no memory or mappings left (vm.max_map_count); libraries "
           "that "
           "are done with can release theirs";
  const size_t bytes =
      m.clusters.size() * size_t(shape.cluster) * size_t(m.shared_stride()) + 1024 + 2 * kSlack;
  if (m.shared.size() < bytes) m.shared.resize(bytes);
  run_grid();
  return m.report;
}

void fail(const std::string& what) {
  Machine& m = machine();
  m.report = "kernel " + m.kernel + ": " + what;
  if (!current) throw FaultOnHost();
  void* gone;
  fastrnn_switch_fibre(&gone, m.host);
  __builtin_unreachable();
}

std::string describe(const Thread& thread) {
  const Block& block = *thread.block;
  std::string result = "block " + text(block.index);
  if (block.cluster->blocks.size() > 1)
    result += " (" + std::to_string(block.cluster_rank) + " of its cluster)";
  return result + " thread " + text(thread.index);
}

std::string describe_address(const void* address) {
  const Machine& m = machine();
  const char* p = (const char*)address;
  for (const auto& cluster : m.clusters)
    for (const auto& block : cluster->blocks) {
      const int64_t offset = p - block->shared;
      if (offset >= -kGuardZone && offset < m.shape.shared_bytes + kGuardZone)
        return "byte " + std::to_string(offset) + " of the " +
               std::to_string(m.shape.shared_bytes) + " bytes of shared memory of block " +
               text(block->index);
    }
  for (const auto& [begin, buffer] : settings().buffers)
    if (p >= begin && p < begin + buffer.bytes)
      return "byte " + std::to_string(p - begin) + " of " + buffer.name;
  char hexadecimal[32];
  snprintf(hexadecimal, sizeof hexadecimal, "%p", address);
  return hexadecimal;
}

std::string describe_waiting() {
  const Machine& m = machine();
  std::string result;
  int lines = 0;
  for (const auto& cluster : m.clusters)
    for (const auto& block : cluster->blocks) {
      const int threads = int(block->threads.size());
      for (int first = 0, last; first < threads; first = last + 1) {
        const Thread& thread = block->threads[size_t(first)];
        if (cluster->threads_left == 0) break;
        const auto same = [&](const Thread& other) {
          const bool polls = thread.state == State::kPolling;
          return other.state == thread.state && strcmp(other.waits_at, thread.waits_at) == 0 &&
                 !(polls &&
                   (other.polls[other.next_poll].address !=
                        thread.polls[thread.next_poll].address ||
                    other.polls[other.next_poll].value != thread.polls[thread.next_poll].value));
        };
        for (last = first; last + 1 < threads && same(block->threads[size_t(last + 1)]); last++) {
        }
        if (++lines > 40) return result + "  ...\n";
        result += "  block " + text(block->index) + " threads " + std::to_string(first) + ".." +
                  std::to_string(last);
        const Thread::Poll& poll = thread.polls[thread.next_poll];
        switch (thread.state) {
          case State::kReturned:
            result += " have returned";
            break;
          case State::kReady:
            result += " can run";
            break;
          case State::kPolling:
            result += " find " + std::to_string(poll.value) + " at " +
                      describe_address(poll.address) + " again and again";
            break;
          default:
            result += std::string(" wait in ") + thread.waits_at + "()";
        }
        result += "\n";
      }
    }
  return result;
}

void check_guard_zones(const Block& block) {
  const int64_t bytes = machine().shape.shared_bytes;
  const auto check = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      if ((unsigned char)block.shared[i] != kPoison)
        fail(describe(*current) +
             " was the last of its block to return; one of them has written "
             "out of bounds, to " +
             describe_address(block.shared + i));
  };
  check(-kGuardZone, 0);
  check(bytes, bytes + kGuardZone);
}

}  // namespace fastrnn::emulator

extern "C" {
// For runner.py.
__attribute__((visibility("default"))) void fastrnn_emulator_configure(
    const fastrnn::emulator::Configuration* configuration) {
  fastrnn::emulator::settings().configuration = *configuration;
  fastrnn::emulator::settings().changes++;
}
// Gives back what this thread's launches keep for the next one.
__attribute__((visibility("default"))) void fastrnn_emulator_release() {
  auto& machine = fastrnn::emulator::machine();
  machine.stacks.release();
  machine.shared = {};
  machine.shadow.reset();
}
// From now on kernels may access global memory only in buffers told of. No bytes: forget them all.
__attribute__((visibility("default"))) void fastrnn_emulator_buffer(const void* data, int64_t bytes,
                                                                    const char* name) {
  auto& buffers = fastrnn::emulator::settings().buffers;
  if (bytes == 0)
    buffers.clear();
  else
    buffers[(const char*)data] = {bytes, name};
}
// Launches of this thread since the last call of fastrnn_emulator_configure.
__attribute__((visibility("default"))) int64_t fastrnn_emulator_launches() {
  const auto& machine = fastrnn::emulator::machine();
  const bool since = machine.settings_changes == fastrnn::emulator::settings().changes;
  return since ? int64_t(machine.launches) : 0;
}
// The fault that ended the last launch of this thread, or an empty text.
__attribute__((visibility("default"))) const char* fastrnn_emulator_report() {
  return fastrnn::emulator::machine().report.c_str();
}
}
