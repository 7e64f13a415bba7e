// Who runs next, and what the threads of a launch wait for.
#include <time.h>

#include "machine.h"

namespace fastrnn::emulator {

thread_local Thread* current = nullptr;

// Pointers only: there is little room for what a library loaded late keeps for each thread.
Machine& machine() {
  static thread_local Machine* instance = nullptr;
  if (!instance) {
    static thread_local std::unique_ptr<Machine> owner;
    owner = std::make_unique<Machine>();
    instance = owner.get();
  }
  return *instance;
}

namespace {

// Polls, made because nobody else can run and none of which finds anything new, after which it is
// called a deadlock; and loads that one thread makes without news before they count as a spin,
// even at changing addresses.
constexpr int64_t kIdlePolls = 1 << 18;
constexpr int kPollsWithoutNews = 64;

int64_t now_ms() {
  // Of this thread's processor time: a machine that is busy elsewhere is not a hanging kernel.
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int random_bit(uint32_t mask, int first) {
  const uint32_t rotated = first ? mask >> first | mask << (32 - first) : mask;
  return (__builtin_ctz(rotated) + first) & 31;
}

int random_burst(Random& random) { return 1 << 2 * random.below(6); }

void not_ready(Thread& thread, State state, const char* function) {
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp()];
  thread.state = state;
  thread.waits_at = function;
  warp.ready &= ~(1u << thread.lane());
  if (!warp.ready) block.ready_warps &= ~(1u << thread.warp());
}

void wake(Machine& m, size_t i) {
  make_ready(*m.polling[i]);
  m.polling[i] = m.polling.back();
  m.polling.pop_back();
}

Block* draw_block(Machine& m) {
  const size_t clusters = m.clusters.size(), start = m.random.below(uint32_t(clusters));
  for (size_t i = 0; i < clusters; i++) {
    Cluster& cluster = *m.clusters[(start + i) % clusters];
    const size_t size = cluster.blocks.size(), first = m.random.below(uint32_t(size));
    for (size_t j = 0; j < size; j++) {
      Block* block = cluster.blocks[(first + j) % size].get();
      if (block->ready_warps) return block;
    }
  }
  return nullptr;
}

// Where no block can go on, those threads that poll look again.
Block* draw_ready_block(Machine& m) {
  if (Block* block = draw_block(m)) return block;
  m.idle_polls += int64_t(m.polling.size());
  if (m.polling.empty() || m.idle_polls > kIdlePolls)
    fail("deadlock: no thread can go on\n" + describe_waiting());
  while (!m.polling.empty()) wake(m, m.polling.size() - 1);
  return draw_block(m);
}

// The thread that runs next.
Thread& draw() {
  Machine& m = machine();
  if ((++m.picks & 0xffff) == 0 && now_ms() > m.deadline_ms)
    fail("no end after " + std::to_string(settings().configuration.timeout_ms) + " ms\n" +
         describe_waiting());
  if (!m.polling.empty() && m.random.below(256) == 0)
    wake(m, m.random.below(uint32_t(m.polling.size())));

  Block* block = m.burst_block;
  if (block && !block->ready_warps) block = nullptr;
  const bool stays = block && m.warp_burst-- > 0 && block->warps[m.burst_warp].ready;
  if (!stays) {
    if (!block || m.block_burst-- <= 0) {
      block = m.burst_block = draw_ready_block(m);
      m.block_burst = random_burst(m.random);
    }
    m.burst_warp = random_bit(block->ready_warps, int(m.random.below(kLanes)));
    m.warp_burst = random_burst(m.random) * kLanes;
  }
  const Warp& warp = block->warps[m.burst_warp];
  return block->threads[m.burst_warp * kLanes + random_bit(warp.ready, warp.first)];
}

void yield() {
  machine().burst_block = nullptr;
  suspend();
}

void thread_returns() {
  Machine& m = machine();
  Thread& thread = *current;
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp()];
  if (warp.waiting)
    fail(describe(thread) + " returns while lanes of its warp wait for it in " + warp.at + "()\n" +
         describe_waiting());
  if (block.arrived)
    fail(describe(thread) + " returns while threads of its block wait for it in sync_block()\n" +
         describe_waiting());
  if (thread.cluster_arrived)
    fail(describe(thread) + " returns between cluster_arrive() and cluster_wait()");
  if (!thread.copies.empty())
    fail(describe(thread) +
         " returns without having waited for its copies: " + describe_address(thread.copies[0].to));
  if (block.cluster->arrived)
    fail(describe(thread) + " returns while threads of its cluster wait for it to arrive\n" +
         describe_waiting());
  not_ready(thread, State::kReturned, "");
  warp.returned |= 1u << thread.lane();
  m.news++;
  m.idle_polls = 0;
  block.cluster->threads_left--;
  if (--block.threads_left == 0) {
    check_guard_zones(block);
    // Another block of the cluster that still reads here must not find what it looks for.
    memset(block.shared, kPoison, size_t(m.shape.shared_bytes));
    m.blocks_left--;
  }
  void* gone;
  void* next = m.host;
  if (block.cluster->threads_left > 0) {
    current = &draw();
    next = current->stack_pointer;
  }
  fastrnn_switch_fibre(&gone, next);
  __builtin_unreachable();
}

void thread_begins() {
  const Machine& m = machine();
  m.body(m.arguments);
  thread_returns();
}

void begin(Machine& m, Cluster& cluster, size_t slot) {
  const int64_t rank = m.pending.back();
  m.pending.pop_back();
  const Shape& shape = m.shape;
  cluster.threads = cluster.threads_left = shape.cluster * shape.threads;
  cluster.arrived = 0;
  cluster.phase = 0;
  cluster.clock = {};
  cluster.blocks.resize(size_t(shape.cluster));
  for (int i = 0; i < shape.cluster; i++) {
    const size_t block_slot = slot * size_t(shape.cluster) + size_t(i);
    auto& owner = cluster.blocks[size_t(i)];
    if (!owner) owner = std::make_unique<Block>();
    Block& block = *owner;
    block.rank = rank * shape.cluster + i;
    block.index = {unsigned(block.rank % shape.grid.x),
                   unsigned(block.rank / shape.grid.x % shape.grid.y),
                   unsigned(block.rank / shape.grid.x / shape.grid.y)};
    block.cluster = &cluster;
    block.cluster_rank = i;
    block.shared = (char*)(((uintptr_t)m.shared.data() + kSlack + 1023) / 1024 * 1024) +
                   int64_t(block_slot) * m.shared_stride() + kGuardZone;
    memset(block.shared - kGuardZone, kPoison, size_t(m.shape.shared_bytes + 2 * kGuardZone));
    block.threads.resize(size_t(shape.threads));
    block.warps.assign(size_t(shape.threads / kLanes), Warp());
    block.arrived = 0;
    block.threads_left = shape.threads;
    races::block_begins(block);
    for (int rank = 0; rank < shape.threads; rank++) {
      Thread& thread = block.threads[size_t(rank)];
      thread = Thread();
      thread.index = {unsigned(rank), 0, 0};
      thread.block = &block;
      thread.rank = rank;
      const size_t stack = block_slot * size_t(shape.threads) + size_t(rank);
      thread.stack_low = m.stacks.low(stack);
      thread.stack_pointer = new_fibre(m.stacks.top(stack), thread_begins);
      races::thread_begins(thread);
      make_ready(thread);
    }
    for (Warp& warp : block.warps) warp.first = int(m.random.below(kLanes));
  }
}

}  // namespace

void run_grid() {
  Machine& m = machine();
  m.deadline_ms = now_ms() + settings().configuration.timeout_ms;
  m.polling.clear();
  m.idle_polls = 0;
  m.burst_block = nullptr;
  races::launch_begins();
  while (m.blocks_left > 0 && m.report.empty()) {
    for (size_t slot = 0; slot < m.clusters.size(); slot++)
      if (m.clusters[slot]->threads_left == 0 && !m.pending.empty())
        begin(m, *m.clusters[slot], slot);
    try {
      current = &draw();
    } catch (const FaultOnHost&) {
      return;
    }
    fastrnn_switch_fibre(&m.host, current->stack_pointer);
    current = nullptr;
  }
}

void suspend() {
  Thread* self = current;
  Thread* next = &draw();
  if (next == self) return;
  current = next;
  fastrnn_switch_fibre(&self->stack_pointer, next->stack_pointer);
}

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  thread.block->warps[thread.warp()].ready |= 1u << thread.lane();
  thread.block->ready_warps |= 1u << thread.warp();
}

void stored(const void* address) {
  Machine& m = machine();
  m.news++;
  m.idle_polls = 0;
  for (size_t i = m.polling.size(); i-- > 0;) {
    const Thread& thread = *m.polling[i];
    if (thread.polls[thread.next_poll].address == address) wake(m, i);
  }
  if (m.random.below(4) == 0) yield();  // others may run before what follows
}

void polled(const void* address, uint64_t value) {
  Machine& m = machine();
  Thread& thread = *current;
  if (thread.news != m.news) thread.polls_without_news = 0;
  thread.news = m.news;
  bool seen = ++thread.polls_without_news > kPollsWithoutNews;
  for (const Thread::Poll& poll : thread.polls)
    seen |= poll.address == address && poll.value == value;
  thread.next_poll = (thread.next_poll + 1) % 4;
  thread.polls[thread.next_poll] = {address, value};
  if (seen) {
    not_ready(thread, State::kPolling, "load_acquire");
    m.polling.push_back(&thread);
    suspend();
  } else if (m.random.below(4) == 0) {
    yield();
  }
}

void meet_warp(const char* function, void* exchange, void (*complete)(void* const exchange[])) {
  Thread& thread = *current;
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp()];
  if (warp.returned)
    fail(describe(thread) + " is in " + function + "(), which lane " +
         std::to_string(__builtin_ctz(warp.returned)) + " of its warp has left out by returning");
  if (warp.waiting && strcmp(warp.at, function) != 0)
    fail(describe(thread) + " is in " + function + "() while lane " +
         std::to_string(__builtin_ctz(warp.waiting)) + " of its warp is in " + warp.at + "()");
  warp.at = function;
  warp.waiting |= 1u << thread.lane();
  thread.exchange = exchange;
  if (~warp.waiting) {
    not_ready(thread, State::kAtWarp, function);
    suspend();
    return;
  }
  Thread* lanes = &block.threads[size_t(thread.warp() * kLanes)];
  void* all[kLanes];
  for (int lane = 0; lane < kLanes; lane++) {
    all[lane] = lanes[lane].exchange;
    lanes[lane].state = State::kReady;
  }
  complete(all);
  warp.waiting = 0;
  warp.ready = ~0u;
  block.ready_warps |= 1u << thread.warp();
  warp.first = int(machine().random.below(kLanes));
}

void sync_warp() {
  meet_warp("sync_warp", nullptr,
            [](void* const*) { races::warp_passes(*current->block, current->warp()); });
}

void sync_block() {
  Thread& thread = *current;
  Block& block = *thread.block;
  if (block.threads_left < int(block.threads.size()))
    fail(describe(thread) +
         " waits in sync_block(), which threads of its block have left out by "
         "returning\n" +
         describe_waiting());
  if (++block.arrived < int(block.threads.size())) {
    not_ready(thread, State::kAtBlock, "sync_block");
    suspend();
    return;
  }
  block.arrived = 0;
  races::block_passes(block);
  for (Thread& other : block.threads) make_ready(other);
  Random& random = machine().random;
  for (Warp& warp : block.warps) warp.first = int(random.below(kLanes));
  if (random.below(2)) yield();  // the last to come is not the first to go on
}

void cluster_arrive() {
  Thread& thread = *current;
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_arrived)
    fail(describe(thread) + " is in cluster_arrive() again without cluster_wait()");
  if (cluster.threads_left < cluster.threads)
    fail(describe(thread) +
         " is in cluster_arrive(), which threads of its cluster have left out "
         "by returning\n" +
         describe_waiting());
  thread.cluster_arrived = true;
  thread.cluster_phase = cluster.phase;
  races::cluster_arrives(thread);
  if (++cluster.arrived < cluster.threads) return;
  cluster.arrived = 0;
  cluster.phase++;
  races::cluster_passes(cluster);
  for (auto& block : cluster.blocks)
    for (Thread& other : block->threads)
      if (other.state == State::kAtCluster) make_ready(other);
}

void cluster_wait() {
  Thread& thread = *current;
  if (!thread.cluster_arrived)
    fail(describe(thread) + " is in cluster_wait() without cluster_arrive()");
  if (thread.block->cluster->phase == thread.cluster_phase) {
    not_ready(thread, State::kAtCluster, "cluster_wait");
    suspend();
  }
  thread.cluster_arrived = false;
  races::cluster_waited(thread);
}

}  // namespace fastrnn::emulator
