// The checked build: every access of a kernel to memory, seen through the calls that the compiler
// inserts with -fsanitize=thread. The names __tsan_* are its own; the library behind them is not
// linked, this file stands in its place.
//
// Reported: races (see races.h), accesses outside of what a kernel may touch, and misaligned ones,
// which the CPU forgives and the GPU does not.
#include "races.h"

#include <unordered_map>

#include "machine.h"

namespace fastrnn::emulator::races {

namespace {

// The last access to two bytes by the write and the last ones by reads that are not ordered before
// each other. Of more readers than there is room for, a random one is forgotten.
struct Stamp {
  uint32_t thread;  // rank within the grid; the highest bit is set if the access was atomic
  uint32_t time;    // 0: none
  uint32_t pc;      // relative to the library
};
constexpr int kReaders = 3, kGrain = 2, kPage = 4096;
constexpr uint32_t kAtomic = 1u << 31;
constexpr uint32_t kCopying = ~0u;  // the time of a copy that nobody has waited for
struct Cell {
  Stamp write;
  Stamp reads[kReaders];
};
struct Page {
  Cell cells[kPage / kGrain] = {};
};

struct Shadow {
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  struct Recent {
    uintptr_t number;
    Page* page;
  } recent[64] = {};
  std::unordered_map<const void*, Clock> released;  // by what was stored at the address

  Page& page(uintptr_t number) {
    Recent& entry = recent[number % 64];
    if (entry.number != number || !entry.page) {
      auto& owner = pages[number];
      if (!owner) owner = std::make_unique<Page>();
      entry = {number, owner.get()};
    }
    return *entry.page;
  }
  void forget(const char* begin, const char* end) {
    for (uintptr_t p = (uintptr_t)begin; p < (uintptr_t)end; p += kGrain)
      page(p / kPage).cells[p % kPage / kGrain] = {};
  }
};

Shadow& shadow() {
  Machine& m = machine();
  if (!m.shadow) m.shadow = std::make_shared<Shadow>();
  return *static_cast<Shadow*>(m.shadow.get());
}

const uint32_t* find(const Clock& clock, int64_t block) {
  if (clock)
    for (const auto& [rank, times] : *clock)
      if (rank == block) return times->data();
  return nullptr;
}

Clock join(const Clock& a, const Clock& b) {
  if (!b || a == b) return a;
  if (!a) return b;
  std::vector<std::pair<int64_t, Times>> merged;
  bool is_a = true;
  auto i = a->begin(), j = b->begin();
  while (i != a->end() || j != b->end()) {
    if (j == b->end() || (i != a->end() && i->first < j->first)) {
      merged.push_back(*i++);
    } else if (i == a->end() || j->first < i->first) {
      merged.push_back(*j++);
      is_a = false;
    } else {
      if (i->second == j->second) {
        merged.push_back(*i);
      } else {
        std::vector<uint32_t> latest = *i->second;
        bool more = false;
        for (size_t k = 0; k < latest.size(); k++)
          if ((*j->second)[k] > latest[k]) {
            latest[k] = (*j->second)[k];
            more = true;
          }
        is_a &= !more;
        merged.emplace_back(i->first, more ? Times(std::move(latest)) : i->second);
      }
      i++, j++;
    }
  }
  return is_a ? a : Clock(std::move(merged));
}

// The clock of somebody to whom these threads of a block have told all they know and did.
Clock told_by(const Block& block, const Thread* threads, int count) {
  Clock all = threads[0].clock.known;
  for (int i = 1; i < count; i++) all = join(all, threads[i].clock.known);
  std::vector<uint32_t> times(block.threads.size());
  if (const uint32_t* before = find(all, block.rank)) times.assign(before, before + times.size());
  for (int i = 0; i < count; i++) times[size_t(threads[i].rank)] = threads[i].clock.time;
  std::vector<std::pair<int64_t, Times>> result;
  bool placed = false;
  Times own(std::move(times));
  if (all)
    for (const auto& entry : *all) {
      if (!placed && entry.first >= block.rank) {
        result.emplace_back(block.rank, own);
        placed = true;
      }
      if (entry.first != block.rank) result.push_back(entry);
    }
  if (!placed) result.emplace_back(block.rank, own);
  return Clock(std::move(result));
}

void meet(Block& block, int first, int count) {
  const Clock all = told_by(block, &block.threads[size_t(first)], count);
  for (int i = first; i < first + count; i++) {
    block.threads[size_t(i)].clock.known = all;
    block.threads[size_t(i)].clock.time++;
  }
}

bool ordered_before(const Stamp& stamp, uint32_t me, const Thread& thread) {
  const uint32_t other = stamp.thread & ~kAtomic;
  if (stamp.time == kCopying) return false;
  if (stamp.time == 0 || other == me) return true;
  const uint32_t size = uint32_t(thread.block->threads.size());
  const uint32_t* times = find(thread.clock.known, other / size);
  return times && times[other % size] >= stamp.time;
}

// The library whose kernels these are.
extern "C" char __ehdr_start __attribute__((visibility("hidden")));
extern "C" char _end __attribute__((visibility("hidden")));

uint32_t relative(const void* pc) { return uint32_t((const char*)pc - &__ehdr_start); }

std::string name(uint32_t thread) {
  const Shape& shape = machine().shape;
  const uint32_t size = uint32_t(shape.threads), rank = (thread & ~kAtomic) / size;
  return "block (" + std::to_string(rank % shape.grid.x) + "," +
         std::to_string(rank / shape.grid.x % shape.grid.y) + "," +
         std::to_string(rank / shape.grid.x / shape.grid.y) + ") thread " +
         std::to_string((thread & ~kAtomic) % size);
}

// runner.py turns it into a line of the source.
std::string at(uint32_t pc) {
  char text[32];
  snprintf(text, sizeof text, " [pc 0x%x]", pc);
  return text;
}

[[noreturn]] void race(const char* p, bool writes, uint32_t pc, const Stamp& other, bool wrote) {
  const char* did = other.time == kCopying ? " has a copy under way" : wrote ? " wrote" : " read";
  fail("race: " + describe(*current) + (writes ? " writes" : " reads") + at(pc) + ", " +
       name(other.thread) + did + at(other.pc) +
       ", and nothing orders the two: " + describe_address(p));
}

// Whether the access lies in memory that the current thread may touch; private memory needs no
// further look.
enum class Where { kPrivate, kShared };
Where locate(const char* p, size_t bytes, bool writes, uint32_t pc) {
  const Machine& m = machine();
  const auto refuse = [&](const char* why) {
    fail("invalid access: " + describe(*current) + (writes ? " writes " : " reads ") +
         std::to_string(bytes) + " bytes" + at(pc) + why + ": " + describe_address(p));
  };
  if (p >= current->stack_low && p < current->stack_low + Stacks::kBytes) return Where::kPrivate;
  const Cluster& cluster = *current->block->cluster;
  for (const auto& block : cluster.blocks) {
    const int64_t offset = p - block->shared;
    if (offset < -kGuardZone || offset >= m.shape.shared_bytes + kGuardZone) continue;
    if (offset < 0 || offset + int64_t(bytes) > m.shape.shared_bytes) refuse(" out of bounds");
    if (block->threads_left == 0) refuse(" of a block that has returned");
    return Where::kShared;
  }
  if (p >= m.shared.data() && p < m.shared.data() + m.shared.size())
    refuse(" in shared memory that is not its cluster's");
  const auto& buffers = settings().buffers;
  if (buffers.empty()) return Where::kShared;
  auto next = buffers.upper_bound(p);
  if (next != buffers.begin() && p < std::prev(next)->first + std::prev(next)->second.bytes) {
    if (p + bytes > std::prev(next)->first + std::prev(next)->second.bytes)
      refuse(" beyond the end of a buffer");
    return Where::kShared;
  }
  if (p >= &__ehdr_start && p < &_end && !writes) return Where::kPrivate;  // constants
  refuse(" in no buffer that the kernel was given");
  return Where::kPrivate;
}

}  // namespace

void launch_begins() {
  shadow().pages.clear();
  shadow().released.clear();
  for (auto& entry : shadow().recent) entry = {};
}

void block_begins(const Block& block) {
  shadow().forget(block.shared - kGuardZone,
                  block.shared + machine().shape.shared_bytes + kGuardZone);
}

void thread_begins(Thread& thread) { thread.clock = ThreadClock(); }

void warp_passes(Block& block, int warp) { meet(block, warp * kLanes, kLanes); }

void block_passes(Block& block) { meet(block, 0, int(block.threads.size())); }

void cluster_arrives(Thread& thread) {
  thread.clock.arrived = told_by(*thread.block, &thread, 1);
  thread.clock.time++;
}

void cluster_passes(Cluster& cluster) {
  Clock all;
  for (auto& block : cluster.blocks) {
    // Joined block by block: one vector of times for each, which all its threads share from now.
    Clock of_block;
    std::vector<uint32_t> times(block->threads.size());
    for (Thread& thread : block->threads) {
      of_block = join(of_block, thread.clock.arrived);
      thread.clock.arrived = Clock();
    }
    all = join(all, of_block);
  }
  cluster.clock.passed = all;
}

void cluster_waited(Thread& thread) {
  thread.clock.known = join(thread.clock.known, thread.block->cluster->clock.passed);
}

void releases(Thread& thread, const void* address) {
  shadow().released[address] = told_by(*thread.block, &thread, 1);
  thread.clock.time++;
}

void acquires(Thread& thread, const void* address) {
  const auto found = shadow().released.find(address);
  if (found != shadow().released.end())
    thread.clock.known = join(thread.clock.known, found->second);
}

void access(const void* address, size_t bytes, Access kind, const void* pc_pointer) {
  if (!current) return;
  const char* p = (const char*)address;
  const bool writes = kind == Access::kWrite || kind == Access::kAtomicWrite;
  const bool atomic = kind == Access::kAtomicRead || kind == Access::kAtomicWrite;
  const uint32_t pc = relative(pc_pointer);
  if (locate(p, bytes, writes, pc) == Where::kPrivate) return;

  const Thread& thread = *current;
  const uint32_t me =
      uint32_t(thread.block->rank * int64_t(thread.block->threads.size())) + uint32_t(thread.rank);
  const Stamp mine = {me | (atomic ? kAtomic : 0), thread.clock.time, pc};
  const uintptr_t begin = (uintptr_t)p / kGrain, end = ((uintptr_t)p + bytes - 1) / kGrain;
  for (uintptr_t grain = begin; grain <= end; grain++) {
    const uintptr_t byte = grain * kGrain;
    Cell& cell = shadow().page(byte / kPage).cells[byte % kPage / kGrain];
    const auto conflicts = [&](const Stamp& other) {
      return !ordered_before(other, me, thread) && !(atomic && other.thread & kAtomic);
    };
    if (conflicts(cell.write)) race((const char*)byte, writes, pc, cell.write, true);
    if (writes) {
      for (Stamp& read : cell.reads) {
        if (conflicts(read)) race((const char*)byte, writes, pc, read, false);
        read = {};
      }
      cell.write = mine;
      continue;
    }
    Stamp* place = nullptr;
    for (Stamp& read : cell.reads)
      if (!place && ordered_before(read, me, thread)) place = &read;
    if (!place) place = &cell.reads[machine().random.below(kReaders)];
    *place = mine;
  }
}

namespace {

template <class Change>
void for_each_write(const void* to, size_t bytes, const Change& change) {
  for (uintptr_t byte = (uintptr_t)to; byte < (uintptr_t)to + bytes; byte += kGrain)
    change(shadow().page(byte / kPage).cells[byte % kPage / kGrain].write);
}

}  // namespace

void copy_begins(const void* to, size_t bytes, const void* pc) {
  access(to, bytes, Access::kWrite, pc);
  for_each_write(to, bytes, [](Stamp& write) { write.time = kCopying; });
}

void copy_ends(const void* to, size_t bytes) {
  const uint32_t now = current->clock.time;
  for_each_write(to, bytes, [now](Stamp& write) { write.time = now; });
}

}  // namespace fastrnn::emulator::races

// ---- What the compiler calls

using fastrnn::emulator::races::access;
using fastrnn::emulator::races::Access;

namespace {

void aligned_access(void* p, size_t bytes, Access kind, const void* pc) {
  using namespace fastrnn::emulator;
  if (!current) return;
  // The host's compiler moves a thread's own structs by more bytes than they are aligned to.
  const char* const low = current->stack_low;
  const bool own = (const char*)p >= low && (const char*)p < low + Stacks::kBytes;
  if ((uintptr_t)p % bytes && !own)
    fail("misaligned access: " + describe(*current) + " accesses " + std::to_string(bytes) +
         " bytes" + races::at(races::relative(pc)) + ": " + describe_address(p));
  access(p, bytes, kind, pc);
}

}  // namespace

#define FASTRNN_PC __builtin_return_address(0)
#define FASTRNN_HOOKS(bytes)                                                                  \
  void __tsan_read##bytes(void* p) { aligned_access(p, bytes, Access::kRead, FASTRNN_PC); }   \
  void __tsan_write##bytes(void* p) { aligned_access(p, bytes, Access::kWrite, FASTRNN_PC); } \
  void __tsan_volatile_read##bytes(void* p) {                                                 \
    aligned_access(p, bytes, Access::kRead, FASTRNN_PC);                                      \
  }                                                                                           \
  void __tsan_volatile_write##bytes(void* p) {                                                \
    aligned_access(p, bytes, Access::kWrite, FASTRNN_PC);                                     \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
FASTRNN_HOOKS(1)
FASTRNN_HOOKS(2)
FASTRNN_HOOKS(4)
FASTRNN_HOOKS(8)
FASTRNN_HOOKS(16)
// Structs, and what the compiler joins from neighbours: any size and alignment.
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, Access::kRead, FASTRNN_PC); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, Access::kWrite, FASTRNN_PC); }

// In place of the functions of these names: checked_memory.h.
void* fastrnn_checked_memmove(void* to, const void* from, size_t bytes) {
  if (bytes) access(from, bytes, Access::kRead, FASTRNN_PC);
  if (bytes) access(to, bytes, Access::kWrite, FASTRNN_PC);
  return memmove(to, from, bytes);
}
void* fastrnn_checked_memcpy(void* to, const void* from, size_t bytes) {
  if (bytes) access(from, bytes, Access::kRead, FASTRNN_PC);
  if (bytes) access(to, bytes, Access::kWrite, FASTRNN_PC);
  return memcpy(to, from, bytes);
}
void* fastrnn_checked_memset(void* to, int value, size_t bytes) {
  if (bytes) access(to, bytes, Access::kWrite, FASTRNN_PC);
  return memset(to, value, bytes);
}

// The host's part of the sources may use atomics (the guard of a static variable is one). Kernels
// have those of device.cuh.
#define FASTRNN_ATOMICS(bits, T)                                                                 \
  T __tsan_atomic##bits##_load(const T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  void __tsan_atomic##bits##_store(T* p, T value, int) {                                         \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                \
  }                                                                                              \
  T __tsan_atomic##bits##_exchange(T* p, T value, int) {                                         \
    return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                      \
  }                                                                                              \
  T __tsan_atomic##bits##_fetch_add(T* p, T value, int) {                                        \
    return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                              \
  T __tsan_atomic##bits##_fetch_sub(T* p, T value, int) {                                        \
    return __atomic_fetch_sub(p, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                              \
  bool __tsan_atomic##bits##_compare_exchange_strong(T* p, T* expected, T value, int, int) {     \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST,              \
                                       __ATOMIC_SEQ_CST);                                        \
  }
FASTRNN_ATOMICS(8, uint8_t)
FASTRNN_ATOMICS(32, uint32_t)
FASTRNN_ATOMICS(64, uint64_t)
}
