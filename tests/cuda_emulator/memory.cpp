// What a thread asks: who it is, shared memory, flags in global memory, the exchanges of a warp.
#include "machine.h"
#include "numbers.h"

namespace fastrnn::emulator {

Dim3 thread_index() { return current->index; }
Dim3 block_index() { return current->block->index; }
Dim3 block_size() { return {unsigned(current->block->threads.size()), 1, 1}; }
Dim3 grid_size() { return machine().shape.grid; }
void* shared_memory() { return current->block->shared; }

void trap() { fail(describe(*current) + " calls trap()\n" + describe_waiting()); }

unsigned cluster_rank() { return unsigned(current->block->cluster_rank); }
unsigned cluster_size() { return unsigned(current->block->cluster->blocks.size()); }

void* remote(void* shared, unsigned rank) {
  const Block& block = *current->block;
  const int64_t offset = (char*)shared - block.shared;
  if (offset < 0 || offset > machine().shape.shared_bytes)
    fail(describe(*current) +
         " asks in remote() for what is not in its shared memory: " + describe_address(shared));
  if (rank >= block.cluster->blocks.size())
    fail(describe(*current) + " asks in remote() for block " + std::to_string(rank) +
         " of a cluster of " + std::to_string(block.cluster->blocks.size()));
  return block.cluster->blocks[rank]->shared + offset;
}

unsigned load_acquire(const unsigned* p) {
  races::access(p, sizeof *p, races::Access::kAtomicRead, __builtin_return_address(0));
  const unsigned value = *p;
  races::acquires(*current, p);
  polled(p, value);
  return value;
}

void store_release(unsigned* p, unsigned value) {
  races::access(p, sizeof *p, races::Access::kAtomicWrite, __builtin_return_address(0));
  races::releases(*current, p);
  *p = value;
  stored(p);
}

// An ordinary read to the race detector: what it reads must have been acquired.
void load_exchanged(void* value, const void* p) {
  if ((uintptr_t)p % 16)
    fail(describe(*current) +
         " is in load_exchanged() with an address that is not a multiple of "
         "16: " +
         describe_address(p));
  races::access(p, 16, races::Access::kRead, __builtin_return_address(0));
  memcpy(value, p, 16);
}

// What was there is gone at once, and what is to come is there as late as it may be: who reads
// between finds NaN.
void begin_copy(void* shared, const void* global) {
  Thread& thread = *current;
  const int64_t offset = (char*)shared - thread.block->shared;
  if (offset < 0 || offset + 16 > machine().shape.shared_bytes)
    fail(describe(thread) +
         " begins a copy to what is not in its block's shared memory: " + describe_address(shared));
  for (const void* p : {(const void*)shared, global})
    if ((uintptr_t)p % 16)
      fail(describe(thread) + " is in begin_copy() with an address that is not a multiple of 16: " +
           describe_address(p));
  races::access(global, 16, races::Access::kRead, __builtin_return_address(0));
  races::copy_begins(shared, 16, __builtin_return_address(0));
  memset(shared, kPoison, 16);
  thread.copies.push_back({shared, global, thread.copy_groups});
}

void close_copies() { current->copy_groups++; }

void wait_copies(int still_open) {
  auto& copies = current->copies;
  size_t done = 0;
  while (done < copies.size() && copies[done].group < current->copy_groups - still_open) {
    memcpy(copies[done].to, copies[done].from, 16);
    races::copy_ends(copies[done].to, 16);
    done++;
  }
  copies.erase(copies.begin(), copies.begin() + int64_t(done));
}

namespace {

struct Shuffle {
  uint64_t bits;
  int source;
};
struct Vote {
  bool value;
  uint32_t ballot;
};

}  // namespace

uint64_t shuffle(uint64_t bits, int source_lane) {
  Shuffle mine = {bits, source_lane};
  meet_warp("shuffle", &mine, [](void* const exchange[]) {
    uint64_t before[kLanes];
    for (int lane = 0; lane < kLanes; lane++) before[lane] = ((Shuffle*)exchange[lane])->bits;
    for (int lane = 0; lane < kLanes; lane++) {
      Shuffle& other = *(Shuffle*)exchange[lane];
      other.bits = before[other.source];
    }
  });
  return mine.bits;
}

uint32_t vote(bool value) {
  Vote mine = {value, 0};
  meet_warp("vote", &mine, [](void* const exchange[]) {
    uint32_t ballot = 0;
    for (int lane = 0; lane < kLanes; lane++)
      ballot |= uint32_t(((Vote*)exchange[lane])->value) << lane;
    for (int lane = 0; lane < kLanes; lane++) ((Vote*)exchange[lane])->ballot = ballot;
  });
  return mine.ballot;
}

namespace {

// The places of the fragments, from the PTX ISA: with r = lane / 4 and q = lane % 4,
//   d (16 x 8)                (r, 2q) (r, 2q+1) (r+8, 2q) (r+8, 2q+1)
//   a (16 x 16, two a word)   (r, 2q) (r+8, 2q) (r, 2q+8) (r+8, 2q+8), and the column after each
//   b (16 x 8, two a word)    (2q, r) (2q+8, r), and the row after each
//   a (16 x 8, TF32)          (r, q) (r+8, q) (r, q+4) (r+8, q+4)
//   b (8 x 8, TF32)           (q, r) (q+4, r)
template <Matrix kDtype>
void multiply_all(void* const exchange[]) {
  constexpr int kDepth = kDtype == Matrix::kTf32 ? 8 : 16;
  float a[16][kDepth], b[kDepth][8], d[16][8];
  const auto part = [&](int lane) -> Fragments& { return *(Fragments*)exchange[lane]; };
  const auto number = [](uint32_t bits) {
    return kDtype == Matrix::kHalf ? float_of_half(uint16_t(bits))
                                   : float_of_bits((bits & 0xffff) << 16);
  };
  for (int lane = 0; lane < kLanes; lane++) {
    const Fragments& f = part(lane);
    const int r = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; i++) {
      d[r + 8 * (i / 2)][2 * q + i % 2] = f.d[i];
      const int row = r + 8 * (i % 2), half = i / 2;
      if constexpr (kDtype == Matrix::kTf32) {
        // The hardware reads the upper 19 bits: a value nobody rounded is truncated.
        a[row][q + 4 * half] = float_of_bits(f.a[i] & ~0x1fffu);
        if (i < 2) b[q + 4 * i][r] = float_of_bits(f.b[i] & ~0x1fffu);
      } else {
        a[row][2 * q + 8 * half] = number(f.a[i]);
        a[row][2 * q + 8 * half + 1] = number(f.a[i] >> 16);
        if (i < 2) b[2 * q + 8 * i][r] = number(f.b[i]);
        if (i < 2) b[2 * q + 8 * i + 1][r] = number(f.b[i] >> 16);
      }
    }
  }
  // Products are exact in float. The hardware adds in an order that is not documented.
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < kDepth; k++)
      for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < kLanes; lane++)
    for (int i = 0; i < 4; i++) part(lane).d[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

}  // namespace

void multiply(Matrix dtype, Fragments& fragments) {
  switch (dtype) {
    case Matrix::kHalf:
      return meet_warp("mma_16x8x16_half", &fragments, multiply_all<Matrix::kHalf>);
    case Matrix::kBFloat16:
      return meet_warp("mma_16x8x16_bfloat16", &fragments, multiply_all<Matrix::kBFloat16>);
    case Matrix::kTf32:
      return meet_warp("mma_16x8x8_tf32", &fragments, multiply_all<Matrix::kTf32>);
  }
}

}  // namespace fastrnn::emulator
