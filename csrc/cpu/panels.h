// Products of a few rows with a weight matrix, in the shape a recurrent step needs them.
//
// A matrix is packed into panels. A panel holds L neighbouring units, at most U * V of them (V:
// values in a register), with all G gates: [1 + K][G][L], first the bias, then one row of weights
// for each of the K values of the input, or for each pair of them (terms.h); a row is filled up to
// whole registers. Panels and tiles are in the type of the arithmetic; what is narrower is
// converted: weights as they are packed, inputs a block at a time. One stream of loads feeds the
// accumulators of all gates of the units, and the tile of results [rows][G][L] that comes out has
// everything the pointwise part of those units needs; it stays in the first-level cache.
//
// Every result is summed over k in the same order whatever the number of rows in a tile, so
// results do not depend on how rows are split over threads.
#pragma once

#include "dot.h"
#include "team.h"

FASTRNN_NAMESPACE_BEGIN

// Registers decide how many rows a tile of P vectors can have: accumulators, P weights, 1 input.
template <int P>
struct TileRows {
#if FASTRNN_VECTOR_BYTES == 64
  static constexpr int kRows = P == 4 ? 6 : 8;
  static constexpr int kVectors = P;  // vectors per pass over k
#else
  static constexpr int kRows = P == 3 ? 4 : 6;
  static constexpr int kVectors = P == 4 ? 2 : P;
#endif
};
constexpr int kMaxTileRows = 8;
constexpr int kMaxTileVectors = 4;

// How `units` units of G gates fall into panels of U vectors; the last panel may have fewer.
template <class T, int G, int U>
struct PanelShape {
  static constexpr int kWidth = Pack<Compute<T>>::kWidth;
  static constexpr int kUnits = U * kWidth;

  int64_t units, depth;

  int64_t panels() const { return (units + kUnits - 1) / kUnits; }
  int64_t first_unit(int64_t panel) const { return panel * kUnits; }
  // Units of a panel.
  int64_t units_of(int64_t panel) const {
    const int64_t left = units - first_unit(panel);
    return left < kUnits ? left : kUnits;
  }
  // Values in a row of a panel, and registers.
  int64_t row(int64_t panel) const { return vectors(panel) * int64_t(kWidth); }
  int vectors(int64_t panel) const { return int((G * units_of(panel) + kWidth - 1) / kWidth); }
  // Distance between panels: a full panel's size, also for the last one.
  int64_t stride() const { return (1 + slots<T>(depth)) * G * kUnits; }
  int64_t size() const { return panels() * stride(); }
};

// Where the values of a matrix are: gate g, unit j, input k at
// data[g * gate + j * unit + k * input]. Either unit or input is 1.
template <class T>
struct MatrixView {
  const T* data = nullptr;
  int64_t gate = 0, unit = 0, input = 0;
};

// The slots of n neighbouring units, given their weights for the first and, where a slot takes two,
// the second input; null if that does not exist.
template <class T>
FASTRNN_FN Pack<Compute<T>> slots_across(const T* first, const T* second, int n) {
  using V = Pack<Compute<T>>;
  if constexpr (Terms<T>::kInputs == 1) {
    return (void)second, V::load(first, n);
  } else {
    return Terms<T>::pair_up(V::load(first, n), second ? V::load(second, n) : zero<V>());
  }
}

// Calls function(gate, first, n, lane) for each register of units of a panel and each gate: n units
// from unit `first` on, which a row of the panel has from `lane` on.
template <class T, int G, int U, class Function>
FASTRNN_FN void for_each_register(const PanelShape<T, G, U>& shape, int64_t panel,
                                  const Function& function) {
  const int64_t units = shape.units_of(panel), first = shape.first_unit(panel);
  for (int g = 0; g < G; ++g)
    for (int64_t j = 0; j < units; j += shape.kWidth)
      function(g, first + j, int(units - j < shape.kWidth ? units - j : shape.kWidth),
               g * units + j);
}

template <class T, int G, int U>
void pack_panel(const PanelShape<T, G, U>& shape, int64_t panel, const MatrixView<T>& matrix,
                const T* bias, int64_t bias_gate, Compute<T>* out) {
  using V = Pack<Compute<T>>;
  constexpr int kWidth = V::kWidth, kInputs = Terms<T>::kInputs;
  const int64_t row = shape.row(panel);
  if (shape.units_of(panel) < shape.kUnits)
    for (int64_t k = 0; k < 1 + slots<T>(shape.depth); ++k)
      zero<V>().store(out + (k + 1) * row - kWidth);  // what no unit fills
  for_each_register(shape, panel, [&](int g, int64_t unit, int n, int64_t lane) {
    Compute<T>* column = out + lane;
    (bias ? V::load(bias + g * bias_gate + unit, n) : zero<V>()).store(column, n);
    column += row;
    const T* source = matrix.data + g * matrix.gate + unit * matrix.unit;
    if (matrix.unit == 1) {
      for (int64_t k = 0; k < shape.depth; k += kInputs, column += row) {
        const T* first = source + k * matrix.input;
        slots_across(first, k + 1 < shape.depth ? first + matrix.input : nullptr, n)
            .store(column, n);
      }
      return;
    }
    // Inputs are adjacent: square after square, transposed.
    for (int64_t k = 0; k < shape.depth; k += kWidth * kInputs, column += kWidth * row) {
      const int64_t left = shape.depth - k;
      const int inputs = left < kWidth * kInputs ? int(left) : kWidth * kInputs;
      V square[kWidth];
      for (int v = 0; v < kWidth; ++v)
        square[v] = v < n ? Terms<T>::along(source + v * matrix.unit + k, inputs) : zero<V>();
      transpose<1>(square);
      for (int i = 0; i < slots<T>(inputs); ++i) square[i].store(column + i * row, n);
    }
  });
}

// out[m][column ..] = start[m][column ..] + sum over k of a[m][k] * weights[k][column ..], N
// vectors of each row; rows of weights, one for each slot of k, are `stride` apart.
template <class T, int M, int N>
void micro_kernel(const T* const* a, const Compute<T>* weights, int64_t stride, int64_t depth,
                  const Compute<T>* const* start, Compute<T>* const* out, int64_t column) {
  using Term = Terms<T>;
  using V = Pack<Compute<T>>;
  constexpr int kWidth = V::kWidth, kInputs = Term::kInputs;
  // Bare registers: GCC keeps an array of a struct of one in memory.
  typename V::Vector acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = V::load(start[m] + column + n * kWidth).v;
  const T* rows[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) rows[m] = a[m];
  weights += column;
  int64_t k = 0;
  for (; k + kInputs <= depth; k += kInputs, weights += stride) {
    typename V::Vector w[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) w[n] = V::load(weights + n * kWidth).v;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const typename V::Vector value = Term::spread(rows[m], k).v;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = Term::multiply_add(V(value), V(w[n]), V(acc[m][n])).v;
    }
  }
  if constexpr (kInputs > 1) {
    if (k < depth) {
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const typename V::Vector value = Term::spread_last(rows[m], k).v;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
          acc[m][n] = Term::multiply_add(V(value), V::load(weights + n * kWidth), V(acc[m][n])).v;
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) V(acc[m][n]).store(out[m] + column + n * kWidth);
}

// The micro-kernel with as many rows as there are, for P vectors.
template <class T, int P, int M>
void tile_of_rows(int rows, const T* const* a, const Compute<T>* weights, int64_t stride,
                  int64_t depth, const Compute<T>* const* start, Compute<T>* const* out) {
  if constexpr (M > 1) {
    if (rows < M) return tile_of_rows<T, P, M - 1>(rows, a, weights, stride, depth, start, out);
  }
  constexpr int kPass = TileRows<P>::kVectors;
  for (int n = 0; n < P; n += kPass)
    micro_kernel<T, M, kPass>(a, weights, stride, depth, start, out, n * Pack<Compute<T>>::kWidth);
}

template <class T, int P>
void compute_tile(int rows, const T* const* a, const Compute<T>* weights, int64_t stride,
                  int64_t depth, const Compute<T>* const* start, Compute<T>* const* out) {
  constexpr int kRows = TileRows<P>::kRows;
  if constexpr (Terms<T>::kConverted) {
    // A block of inputs at a time, which stays in the first-level cache beside the weights.
    using C = Compute<T>;
    constexpr int kBlock = 256, kWidth = Pack<C>::kWidth;
    alignas(64) C converted[kRows * kBlock];
    const C* inputs[kRows];
    for (int m = 0; m < kRows; ++m) inputs[m] = converted + m * kBlock;
    int64_t k = 0;
    do {
      const int64_t n = depth - k < kBlock ? depth - k : kBlock;
      for (int m = 0; m < rows; ++m)
        for (int64_t i = 0; i < n; i += kWidth)
          Pack<C>::load(a[m] + k + i, int(n - i < kWidth ? n - i : kWidth))
              .store(converted + m * kBlock + i);
      tile_of_rows<C, P, kRows>(rows, inputs, weights + k * stride, stride, n, k ? out : start,
                                out);
      k += n;
    } while (k < depth);
  } else {
    tile_of_rows<T, P, kRows>(rows, a, weights, stride, depth, start, out);
  }
}

// A weight matrix as a step multiplies with it: packed, or as it lies in memory.
template <class T, int G, int U>
struct Operand {
  static_assert(G * U <= kMaxTileVectors, "a panel is at most four vectors wide");

  PanelShape<T, G, U> shape;
  MatrixView<T> matrix;
  const T* bias = nullptr;
  int64_t bias_gate = 0;
  // Room for shape.size() values, or null to multiply the matrix in place, whose inputs are then
  // adjacent.
  Compute<T>* panels = nullptr;

  void pack(int64_t begin, int64_t end) {
    if (!panels) return;
    for (int64_t panel = begin; panel < end; ++panel)
      pack_panel(shape, panel, matrix, bias, bias_gate, panels + panel * shape.stride());
  }
};

// A tile straight from the matrix, for calls too short to pay for packing.
template <class T, int G, int U>
void tile_in_place(const Operand<T, G, U>& operand, int64_t panel, int rows, const T* const* a,
                   Compute<T>* tile) {
  const MatrixView<T>& matrix = operand.matrix;
  for_each_register(operand.shape, panel, [&](int g, int64_t unit, int n, int64_t lane) {
    const T* bias = operand.bias ? operand.bias + g * operand.bias_gate + unit : nullptr;
    const T* source = matrix.data + g * matrix.gate + unit * matrix.unit;
    dot_products(rows, a, source, matrix.unit, n, operand.shape.depth, bias, tile + lane,
                 operand.shape.row(panel));
  });
}

// What a product left of the gates of some neighbouring units of a row.
template <class C>
struct Results {
  const C* values;
  int64_t gate;

  FASTRNN_FN Pack<C> operator[](int g) const { return Pack<C>::load(values + g * gate); }
};

// Computes the product for every one of the panels and every row, and calls
// epilogue(row, unit, n, results) for each register of units: n of them from `unit` on. The other
// lanes of the results hold nothing of use.
// a[i]: the input of row i.
template <class T, int G, int U, class Epilogue>
FASTRNN_FN void for_each_tile(const Operand<T, G, U>& operand, Range panels, const T* const* a,
                              int64_t rows, const Epilogue& epilogue) {
  using C = Compute<T>;
  using Tile =
      void (*)(int, const T* const*, const C*, int64_t, int64_t, const C* const*, C* const*);
  constexpr int kWidth = Pack<C>::kWidth;
  // A register more than a tile: the last results are loaded from the middle of one.
  alignas(64) C tile[(kMaxTileRows * kMaxTileVectors + 1) * kWidth];
  const int64_t depth = operand.shape.depth;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const int vectors = operand.shape.vectors(panel);
    Tile compute = compute_tile<T, 4>;
    int64_t tile_rows = TileRows<4>::kRows;
    switch (vectors) {
      case 1:
        compute = compute_tile<T, 1>, tile_rows = TileRows<1>::kRows;
        break;
      case 2:
        compute = compute_tile<T, 2>, tile_rows = TileRows<2>::kRows;
        break;
      case 3:
        compute = compute_tile<T, 3>, tile_rows = TileRows<3>::kRows;
        break;
    }
    const C* bias = operand.panels + panel * operand.shape.stride();
    const int64_t row = operand.shape.row(panel);
    const C* start[kMaxTileRows];
    C* out[kMaxTileRows];
    for (int m = 0; m < kMaxTileRows; ++m) start[m] = bias, out[m] = tile + m * row;
    const int64_t first = operand.shape.first_unit(panel), units = operand.shape.units_of(panel);
    // Tiles of near-equal height: a low one costs more per row.
    const int64_t tiles = (rows + tile_rows - 1) / tile_rows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = rows * t / tiles;
      const int count = int(rows * (t + 1) / tiles - i);
      if (operand.panels) {
        compute(count, a + i, bias + row, row, depth, start, out);
      } else {
        tile_in_place(operand, panel, count, a + i, tile);
      }
      for (int m = 0; m < count; ++m)
        for (int64_t j = 0; j < units; j += kWidth)
          epilogue(i + m, first + j, int(units - j < kWidth ? units - j : kWidth),
                   Results<C>{tile + m * row + j, units});
    }
  }
}

FASTRNN_NAMESPACE_END
