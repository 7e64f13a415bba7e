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
  static constexpr double kFullRows = 4;       // rows from which the arithmetic is at full rate
  // Seconds for threads to meet, and to start and end a parallel region: each of them adds an
  // access to a line that all write to.
  static constexpr double barrier(int threads) { return 0.3e-6 + 0.05e-6 * threads; }
  static constexpr double fork(int threads) { return 2e-6 + 1e-6 * threads; }
};

// Whether weights of `depth` inputs are packed for a call of so many rows, or multiplied as they
// lie. Measured crossovers: 8 rows at depth 64, 20 at 200, 24 to 60 at 512.
inline bool packing_pays(int64_t rows, int64_t depth) {
  return rows >= 4 + (depth < 528 ? depth / 12 : 44);
}

struct Plan {
  int threads;     // of the parallel region
  Split split;     // within the team of a direction
  double seconds;  // that a step should take
};

// What a pass multiplies, per direction.
struct Work {
  int64_t recurrent;  // values of the matrix every step multiplies
  int stages;         // products of a step that wait for each other
  int64_t block;      // units change hands in blocks of so many
  int64_t others;     // values that each row meets in products outside the recurrence
  // Whether those products are divided among all threads, or belong to the owners of the rows.
  bool others_divide;
};

// The largest of near-equal shares of `count`, as a part of it, in whole blocks.
inline double largest_share(int64_t count, int64_t block, int team) {
  if (count == 0) return 1;
  const int64_t blocks = (count + block - 1) / block;
  const double share = double((blocks + team - 1) / team * block) / count;
  return share < 1 ? share : 1;
}

// The better split among so many threads.
template <class T>
FASTRNN_ONCE Plan plan_for(const Sizes& sizes, const Work& work, int threads) {
  const double flops = Machine::kFlops * 4 / sizeof(T);
  const double bytes = double(work.recurrent) * sizeof(T);
  const double steps = sizes.steps > 0 ? double(sizes.steps) : 1;
  const double rows = sizes.rows / steps;
  const auto step_time = [&](double own_rows, double own_bytes) {
    const double padded = own_rows > Machine::kFullRows ? own_rows : Machine::kFullRows;
    const double multiply = 2 * (own_bytes / sizeof(T)) * padded / flops;
    const double load =
        own_bytes / (own_bytes < Machine::kNearBytes ? Machine::kNear : Machine::kFar);
    return multiply > load ? multiply : load;
  };
  const double others = 2 * work.others * rows / flops;
  if (threads == 1) return {1, Split::rows, (step_time(rows, bytes) + others) * sizes.directions};

  const int team = sizes.directions == 2 ? (threads + 1) / 2 : threads;
  const double unit_share = largest_share(sizes.hidden, work.block, team);
  const double row_share = largest_share(int64_t(rows), 1, team);
  const double fork = Machine::fork(threads) / steps;
  const double meet = team > 1 ? work.stages * Machine::barrier(team) : 0;
  const auto others_time = [&](double share) {
    return others * (work.others_divide ? 1.0 / team : share);
  };
  const double by_rows = step_time(rows * row_share, bytes) + others_time(row_share) + fork;
  const double by_units =
      step_time(rows, bytes * unit_share) + others_time(unit_share) + meet + fork;
  const bool enough_rows = sizes.batch >= team || work.others_divide;
  if (enough_rows && by_rows <= by_units) return {threads, Split::rows, by_rows};
  return {threads, Split::units, by_units};
}

// The best of all threads, half of them, and so on: where a step is short, more are not faster.
template <class T>
FASTRNN_ONCE Plan make_plan(const Sizes& sizes, const Work& work, int threads) {
  Plan best = plan_for<T>(sizes, work, 1);
  for (; threads > 1; threads /= 2) {
    const Plan plan = plan_for<T>(sizes, work, threads);
    if (plan.seconds < best.seconds) best = plan;
  }
  return best;
}

// The team a thread of the region belongs to, and the directions it works on.
struct Assignment {
  Team team;
  int first_direction, last_direction;  // inclusive
};

inline Assignment assign(int directions, int rank, int size, Barrier* barriers, int64_t* waited) {
  if (directions == 1 || size == 1) return {{rank, size, &barriers[0], waited}, 0, directions - 1};
  const int first = (size + 1) / 2;
  if (rank < first) return {{rank, first, &barriers[0], waited}, 0, 0};
  return {{rank - first, size - first, &barriers[1], waited}, 1, 1};
}

FASTRNN_NAMESPACE_END
