// Products of a few rows with a weight matrix, in the shape a recurrent step needs them.
//
// A matrix is packed into panels. A panel holds U * V neighbouring units (V: values in a register)
// with the G gates of a unit side by side: [1 + K][U][G][V], first the bias, then one row of
// weights for each of the K values of the input. One stream of loads feeds the accumulators of
// all gates of the units, and the tile of results [rows][U][G][V] that comes out has everything
// the pointwise part of those units needs; it stays in the first-level cache.
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
  static constexpr int kWidth = Pack<T>::kWidth;
  static constexpr int kUnits = U * kWidth;

  int64_t units, depth;

  int64_t panels() const { return (units + kUnits - 1) / kUnits; }
  int64_t first_unit(int64_t panel) const { return panel * kUnits; }
  int vectors(int64_t panel) const {
    const int64_t left = units - first_unit(panel);
    return left >= kUnits ? U : int((left + kWidth - 1) / kWidth);
  }
  // Valid values of unit vector u of a panel.
  int valid(int64_t panel, int u) const {
    const int64_t left = units - first_unit(panel) - u * kWidth;
    return left >= kWidth ? kWidth : int(left);
  }
  // Distance between panels: a full panel's size, also for the last one.
  int64_t stride() const { return (1 + depth) * G * kUnits; }
  int64_t size() const { return panels() * stride(); }
};

// Where the values of a matrix are: gate g, unit j, input k at
// data[g * gate + j * unit + k * input]. Either unit or input is 1.
template <class T>
struct MatrixView {
  const T* data = nullptr;
  int64_t gate = 0, unit = 0, input = 0;
};

template <class T, int G, int U>
void pack_panel(const PanelShape<T, G, U>& shape, int64_t panel, const MatrixView<T>& matrix,
                const T* bias, int64_t bias_gate, T* out) {
  constexpr int kWidth = Pack<T>::kWidth;
  const int vectors = shape.vectors(panel);
  const int64_t row = int64_t(vectors) * G * kWidth;
  for (int u = 0; u < vectors; ++u) {
    const int valid = shape.valid(panel, u);
    const int64_t unit = shape.first_unit(panel) + u * kWidth;
    for (int g = 0; g < G; ++g) {
      T* column = out + (u * G + g) * kWidth;
      for (int v = 0; v < kWidth; ++v)
        column[v] = bias && v < valid ? bias[g * bias_gate + unit + v] : T(0);
      column += row;
      const T* source = matrix.data + g * matrix.gate + unit * matrix.unit;
      if (matrix.unit == 1) {
        for (int64_t k = 0; k < shape.depth; ++k)
          Pack<T>::load(source + k * matrix.input, valid).store(column + k * row);
        continue;
      }
      // Inputs are adjacent: square after square, transposed.
      for (int64_t k = 0; k < shape.depth; k += kWidth) {
        const int64_t left = shape.depth - k;
        const int inputs = left < kWidth ? int(left) : kWidth;
        Pack<T> square[kWidth];
        for (int v = 0; v < kWidth; ++v)
          square[v] =
              v < valid ? Pack<T>::load(source + v * matrix.unit + k, inputs) : Pack<T>(T(0));
        transpose<1>(square);
        for (int i = 0; i < inputs; ++i) square[i].store(column + (k + i) * row);
      }
    }
  }
}

// out[m][column ..] = start[m][column ..] + sum over k of a[m][k] * weights[k][column ..], N
// vectors of each row; rows of weights are `stride` apart.
template <class T, int M, int N>
void micro_kernel(const T* const* a, const T* weights, int64_t stride, int64_t depth,
                  const T* const* start, T* const* out, int64_t column) {
  using V = Pack<T>;
  constexpr int kWidth = V::kWidth;
  typename V::Vector acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = V::load(start[m] + column + n * kWidth).v;
  const T* rows[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) rows[m] = a[m];
  weights += column;
  for (int64_t k = 0; k < depth; ++k, weights += stride) {
    typename V::Vector w[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) w[n] = V::load(weights + n * kWidth).v;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const typename V::Vector value = V(rows[m][k]).v;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] += value * w[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) V(acc[m][n]).store(out[m] + column + n * kWidth);
}

// The micro-kernel with as many rows as there are, for P vectors.
template <class T, int P, int M>
void tile_of_rows(int rows, const T* const* a, const T* weights, int64_t stride, int64_t depth,
                  const T* const* start, T* const* out) {
  if constexpr (M > 1) {
    if (rows < M) return tile_of_rows<T, P, M - 1>(rows, a, weights, stride, depth, start, out);
  }
  constexpr int kPass = TileRows<P>::kVectors;
  for (int n = 0; n < P; n += kPass)
    micro_kernel<T, M, kPass>(a, weights, stride, depth, start, out, n * Pack<T>::kWidth);
}

template <class T, int P>
void compute_tile(int rows, const T* const* a, const T* weights, int64_t stride, int64_t depth,
                  const T* const* start, T* const* out) {
  tile_of_rows<T, P, TileRows<P>::kRows>(rows, a, weights, stride, depth, start, out);
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
  T* panels = nullptr;

  void pack(int64_t begin, int64_t end) {
    if (!panels) return;
    for (int64_t panel = begin; panel < end; ++panel)
      pack_panel(shape, panel, matrix, bias, bias_gate, panels + panel * shape.stride());
  }
};

// A tile straight from the matrix, for calls too short to pay for packing.
template <class T, int G, int U>
void tile_in_place(const Operand<T, G, U>& operand, int64_t panel, int rows, const T* const* a,
                   int64_t depth, T* tile) {
  constexpr int kWidth = Pack<T>::kWidth;
  const int vectors = operand.shape.vectors(panel);
  const int64_t tile_row = int64_t(vectors) * G * kWidth;
  for (int u = 0; u < vectors; ++u) {
    const int valid = operand.shape.valid(panel, u);
    const int64_t unit = operand.shape.first_unit(panel) + u * kWidth;
    for (int g = 0; g < G; ++g) {
      const T* bias = operand.bias ? operand.bias + g * operand.bias_gate + unit : nullptr;
      const T* source = operand.matrix.data + g * operand.matrix.gate + unit * operand.matrix.unit;
      dot_products(rows, a, source, operand.matrix.unit, valid, depth, bias,
                   tile + (u * G + g) * kWidth, tile_row);
    }
  }
}

// For every one of the panels and every block of rows: computes the tile of results and calls
// epilogue(panel, row, rows, vectors, tile), tile being [rows][vectors][G][V].
// a[i]: the input of row i.
template <class T, int G, int U, class Epilogue>
FASTRNN_FN void for_each_tile(const Operand<T, G, U>& operand, Range panels, const T* const* a,
                              int64_t rows, const Epilogue& epilogue) {
  using Compute =
      void (*)(int, const T* const*, const T*, int64_t, int64_t, const T* const*, T* const*);
  constexpr int kWidth = Pack<T>::kWidth;
  alignas(64) T tile[kMaxTileRows * kMaxTileVectors * kWidth];
  const int64_t depth = operand.shape.depth;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const int vectors = operand.shape.vectors(panel);
    Compute compute = compute_tile<T, 4>;
    int64_t tile_rows = TileRows<4>::kRows;
    switch (vectors * G) {
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
    const T* bias = operand.panels + panel * operand.shape.stride();
    const int64_t row = int64_t(vectors) * G * kWidth;
    const T* start[kMaxTileRows];
    T* out[kMaxTileRows];
    for (int m = 0; m < kMaxTileRows; ++m) start[m] = bias, out[m] = tile + m * row;
    // Tiles of near-equal height: a low one costs more per row.
    const int64_t tiles = (rows + tile_rows - 1) / tile_rows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = rows * t / tiles;
      const int n = int(rows * (t + 1) / tiles - i);
      if (operand.panels) {
        compute(n, a + i, bias + row, row, depth, start, out);
      } else {
        tile_in_place(operand, panel, n, a + i, depth, tile);
      }
      epilogue(panel, i, n, vectors, tile);
    }
  }
}

FASTRNN_NAMESPACE_END
