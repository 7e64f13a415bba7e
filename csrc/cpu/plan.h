// How a call is spread over threads, and whether its weights are packed: what is chosen by cost.
#pragma once

#include "../core/arguments.h"
#include "panels.h"
#include "team.h"

FASTRNN_NAMESPACE_BEGIN

// Vectors of units in a panel, given its gates.
constexpr int unit_vectors(int gates) { return gates >= 3 ? 1 : 4 / gates; }

// Rates of one core, for choosing only: being off by two changes which of two close plans runs.
struct Machine {
  static constexpr double kFlops = 80e9;       // float32 multiply-adds count two
  static constexpr double kNear = 90e9;        // bytes/s of weights from its own L2
  static constexpr double kFar = 30e9;         // and from the shared cache or memory
  static constexpr double kNearBytes = 700e3;  // what of a core's L2 weights may take
  static constexpr double kBarrier = 0.4e-6;   // seconds for a team to meet
  static constexpr double kFork = 4e-6;        // seconds to start and end a parallel region
  static constexpr double kFullRows = 4;       // rows from which the arithmetic is at full rate
};

// Whether weights of `depth` inputs are packed for a call of so many rows, or multiplied as they
// lie. Measured crossovers: 8 rows at depth 64, 20 at 200, 24 to 60 at 512.
inline bool packing_pays(int64_t rows, int64_t depth) {
  return rows >= 4 + (depth < 528 ? depth / 12 : 44);
}

struct Plan {
  int threads;  // of the parallel region
  Split split;  // within the team of a direction
};

// What a pass multiplies, per direction.
struct Work {
  int64_t recurrent;  // values of the matrix every step multiplies
  int stages;         // products of a step that wait for each other
  int64_t others;     // values that each row meets in products outside the recurrence
  // Whether those products are divided among all threads, or belong to the owners of the rows.
  bool others_divide;
};

template <class T>
FASTRNN_ONCE Plan make_plan(const Sizes& sizes, const Work& work, int threads) {
  const double flops = Machine::kFlops * 4 / sizeof(T);
  const double bytes = double(work.recurrent) * sizeof(T);
  const double rows = sizes.steps > 0 ? double(sizes.rows) / sizes.steps : 0;
  const auto step_time = [&](double own_rows, double own_bytes) {
    const double padded = own_rows > Machine::kFullRows ? own_rows : Machine::kFullRows;
    const double multiply = 2 * (own_bytes / sizeof(T)) * padded / flops;
    const double load =
        own_bytes / (own_bytes < Machine::kNearBytes ? Machine::kNear : Machine::kFar);
    return multiply > load ? multiply : load;
  };
  const int team = sizes.directions == 2 && threads > 1 ? (threads + 1) / 2 : threads;
  const double fork = sizes.steps > 0 ? Machine::kFork / sizes.steps : 0;
  const double others = 2 * work.others * rows / flops;
  const double serial = (step_time(rows, bytes) + others) * sizes.directions;
  const double own_rows = double((int64_t(rows) + team - 1) / team);
  const double by_rows = step_time(own_rows, bytes) + others / team + fork;
  const double by_units = step_time(rows, bytes / team) + others / team +
                          (team > 1 ? work.stages * Machine::kBarrier : 0) + fork;
  const bool enough_rows = sizes.batch >= team || work.others_divide;
  const Split split = enough_rows && by_rows <= by_units ? Split::rows : Split::units;
  const double parallel = split == Split::rows ? by_rows : by_units;
  if (threads == 1 || serial <= parallel) return {1, Split::rows};
  return {threads, split};
}

// The team a thread of the region belongs to, and the directions it works on.
struct Assignment {
  Team team;
  int first_direction, last_direction;  // inclusive
};

inline Assignment assign(int directions, int rank, int size, Barrier* barriers) {
  if (directions == 1 || size == 1) return {{rank, size, &barriers[0]}, 0, directions - 1};
  const int first = (size + 1) / 2;
  if (rank < first) return {{rank, first, &barriers[0]}, 0, 0};
  return {{rank - first, size - first, &barriers[1]}, 1, 1};
}

FASTRNN_NAMESPACE_END
