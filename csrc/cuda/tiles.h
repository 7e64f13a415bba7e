// How much a block computes at a time: what the kernels are compiled for, and the planner counts
// on.
#pragma once

#include "../core/platform.h"

FASTRNN_NAMESPACE_BEGIN

constexpr int kThreads = 256;  // of every block that runs steps
constexpr int kWarps = kThreads / 32;
constexpr int kMaxStages = 2;

// Weights and states lie in bricks of 8 rows of 64 bytes; see math.cuh.
constexpr int kBrickRows = 8;
constexpr int kBrickBytes = 64;  // of a row

// ---- sequence.cuh: a group of 8 or 16 units, and a tile of places.

// Tiles of 8 places, with matrix instructions or without. Wide tiles are those of a grid in which
// a team has several: weights are then read once for all of them.
FASTRNN_FN constexpr int sequence_tiles(bool matrix, bool wide) {
  return wide ? 4 : matrix ? 2 : 1;
}
// Whether there are wide tiles for a first stage of so many gates, in groups of 8 units: with fewer
// gates the arithmetic gains nothing by them, and those of two stages would not fit in the
// registers.
FASTRNN_FN constexpr bool has_wide_tiles(bool matrix, int gates, int stages) {
  return matrix && gates >= 3 && stages == 1;
}
// Sums of a larger group would not fit in the registers of a thread.
FASTRNN_FN constexpr int most_unit_blocks(int number_bytes) { return number_bytes == 8 ? 1 : 2; }
// Bricks of which a warp has loads under way together, as far as registers go: `halves` half-tiles
// of 8 weight rows.
FASTRNN_FN constexpr int bricks_ahead(bool matrix, bool wide, int halves, int stages,
                                      int number_bytes) {
  if (!matrix && stages == 2) return 1;
  if (number_bytes == 8) return halves <= 2 ? 2 : 1;
  if (!matrix) return halves <= 2 ? 3 : halves <= 4 ? 2 : 1;
  if (wide) return halves <= 4 && stages == 1 ? 2 : 1;
  if (stages == 2) return halves <= 4 ? 2 : 1;
  return halves <= 4 ? 4 : 2;
}

// ---- tiled.cuh: a block of about 128 weight rows, and 64 places.

constexpr int kTiledTiles = 8, kTiledPlaces = 8 * kTiledTiles;
constexpr int kTiledMostSplit = kTiledTiles;  // blocks of a cluster that share k
constexpr int kPieceBricks = 2;               // of k, that are copied to shared memory together
constexpr int kPieces = 4;                    // of them in shared memory

FASTRNN_FN constexpr int tiled_unit_blocks(int gates) {
  return gates == 1 ? 16 : gates == 2 ? 8 : 4;
}
// Parts of k among the warps of a block.
FASTRNN_FN constexpr int tiled_parts(int number_bytes) { return number_bytes == 8 ? 1 : 2; }
// Pieces, and afterwards partial sums.
FASTRNN_FN constexpr int64_t tiled_shared_bytes(int gates, int number_bytes) {
  const int halves = gates * tiled_unit_blocks(gates);
  const int64_t pieces = int64_t(kPieces) * kPieceBricks * (halves + kTiledTiles) * 512;
  const int64_t sums =
      int64_t(tiled_parts(number_bytes)) * halves * kTiledTiles * 64 * number_bytes;
  return pieces > sums ? pieces : sums;
}

FASTRNN_NAMESPACE_END
