// The products of backward over all rows of a call: gradients of weights, biases and input.
//
// Both kinds are out[m][n] = sum over k of a[m][k] * b[k][n]. For the gradient of a weight matrix
// k runs over rows: a is the transposed da, b the states. For the gradient of x it runs over da's
// columns and b is the weight matrix. A thread takes a block of m, goes through k in blocks that
// leave a's part in its second-level cache, and packs b panel by panel.
//
// Every result is a sum over the blocks of k in order, each in the order of k: it does not depend
// on how m is divided among threads. Sums are of the type of the arithmetic and rounded once.
#pragma once

#include "memory.h"
#include "panels.h"
#include "team.h"

FASTRNN_NAMESPACE_BEGIN

// Rows of a matrix that need not be neighbours: row n is base + stride * index[n], or
// base + stride * n without an index.
template <class T>
struct RowSource {
  const T* base = nullptr;
  int64_t stride = 0;
  const int64_t* index = nullptr;

  FASTRNN_FN const T* row(int64_t n) const { return base + stride * (index ? index[n] : n); }
};
// The same for rows that are written.
template <class T>
struct RowTarget {
  T* base = nullptr;
  int64_t stride = 0;
  const int64_t* index = nullptr;

  FASTRNN_FN T* row(int64_t n) const { return base + stride * (index ? index[n] : n); }
};

// Blocks of the loops over m and k: a's block of 240 x 640 float32 values and a panel of b fill
// three quarters of a second-level cache of 1 MiB. Every block of k reads and writes all of out.
constexpr int64_t kBlockRows = 240;
constexpr int64_t kBlockDepth = 640;
// Rows between the one that is packed into a panel and the one that is fetched.
constexpr int64_t kAhead = 16;
// Fewer rows than this do not pay for packing the panels they meet.
constexpr int64_t kPackedRows = 24;

// Near-equal blocks of at most `most`, multiples of 16, that cover `count`.
inline int64_t block_size(int64_t count, int64_t most) {
  if (count <= most) return count;
  const int64_t blocks = (count + most - 1) / most;
  return ((count + blocks - 1) / blocks + 15) / 16 * 16;
}

template <class T>
class Products {
  using C = Compute<T>;
  using V = Pack<C>;
  using Shape = PanelShape<T, 1, 4>;
  static constexpr int kWidth = V::kWidth;

 public:
  // For products with da of so many rows and columns. widest: columns of the widest results, those
  // of the two factors of `outer` counted together.
  FASTRNN_ONCE Products(int64_t rows, int64_t columns, int64_t widest, Arena& arena)
      : height_(within(columns, kBlockRows)),
        depth_(within(rows > columns ? rows : columns, kBlockDepth)),
        columns_(arena.take<T>(height_ * depth_)),
        panel_(arena.take<C>(depth_ * Shape::kUnits)),
        sums_(arena.take<C>(height_)),
        results_(kNarrow<T>
                     ? arena.take<C>(within(rows > columns ? rows : columns, kBlockRows) * widest)
                     : nullptr) {}

  // A factor of a sum of outer products, (rows, width), and where the result goes.
  struct Factor {
    RowSource<T> states;
    int64_t width = 0;
    T* out = nullptr;  // (columns, width), null where it is not wanted
  };

  // One of the products that add up in `through`: a's columns from `column` on times matrix.
  struct Term {
    RowSource<T> a;
    int64_t column = 0;
    const T* matrix = nullptr;  // (depth, width)
    int64_t depth = 0;
  };

  // out[j] = sum over rows n of a[n][column + j] * states[n], for j in [0, columns), with both
  // factors; and each sums[j] = sum over rows n of a[n][column + j].
  void outer(const RowSource<T>& a, int64_t column, int64_t columns, int64_t rows,
             const Factor* factors, T* const* sums) {
    if (!factors[0].out && !factors[1].out && !sums[0] && !sums[1]) return;
    if (rows == 0) return clear(columns, factors, sums);
    const int64_t depth = block_size(rows, kBlockDepth);
    const int64_t height = block_size(columns, kBlockRows);
    for (int64_t j = 0; j < columns; j += height) {
      const int64_t count = columns - j < height ? columns - j : height;
      C* const results[2] = {results_, results_ + (factors[0].out ? count * factors[0].width : 0)};
      for (int64_t m = 0; m < height_; ++m) sums_[m] = C(0);
      for (int64_t k = 0; k < rows; k += depth) {
        const int64_t n = rows - k < depth ? rows - k : depth;
        transpose_block(a, column + j, count, k, n);
        for (int f = 0; f < 2; ++f) {
          const Factor& factor = factors[f];
          if (!factor.out) continue;
          multiply_block(
              factor.states, k, n, factor.width, count, true, k > 0,
              [&](int64_t m) { return columns_ + m * depth_; },
              [&](int64_t m) {
                return summed(results[f] + m * factor.width, factor.out + (j + m) * factor.width);
              });
        }
      }
      for (int f = 0; f < 2; ++f) {
        const Factor& factor = factors[f];
        if (kNarrow<T> && factor.out)
          round(results[f], factor.out + j * factor.width, count * factor.width);
        if (sums[f]) round(sums_, sums[f] + j, count);
      }
    }
  }

  // out[n] = sum over the terms, and over k < depth of each, of a[n][column + k] * matrix[k], for
  // the rows [begin, end).
  void through(const Term* terms, int count, int64_t begin, int64_t end, int64_t width,
               const RowTarget<T>& out) {
    for (int64_t i = begin; i < end; i += kBlockRows) {
      const int64_t rows = end - i < kBlockRows ? end - i : kBlockRows;
      bool accumulate = false;
      for (const Term* term = terms; term < terms + count; ++term) {
        const RowSource<T> weights = {term->matrix, width, nullptr};
        const int64_t part = block_size(term->depth, kBlockDepth);
        for (int64_t k = 0; k < term->depth; k += part, accumulate = true) {
          const int64_t n = term->depth - k < part ? term->depth - k : part;
          multiply_block(
              weights, k, n, width, rows, rows >= kPackedRows, accumulate,
              [&](int64_t m) { return term->a.row(i + m) + term->column + k; },
              [&](int64_t m) { return summed(results_ + m * width, out.row(i + m)); });
        }
      }
      for (int64_t m = 0; m < rows; ++m) {
        if (!accumulate) {
          memset(out.row(i + m), 0, width * sizeof(T));
        } else if (kNarrow<T>) {
          round(results_ + m * width, out.row(i + m), width);
        }
      }
    }
  }

 private:
  static int64_t within(int64_t count, int64_t most) {
    return count < most ? (count + kWidth - 1) / kWidth * kWidth : most;
  }

  static void clear(int64_t columns, const Factor* factors, T* const* sums) {
    for (int f = 0; f < 2; ++f) {
      if (factors[f].out) memset(factors[f].out, 0, columns * factors[f].width * sizeof(T));
      if (sums[f]) memset(sums[f], 0, columns * sizeof(T));
    }
  }

  // Where the sums for some results are made: in place, or apart if the results are narrower.
  static FASTRNN_FN C* summed(C* apart, T* results) {
    if constexpr (kNarrow<T>) {
      return (void)results, apart;
    } else {
      return (void)apart, results;
    }
  }
  static void round(const C* sums, T* results, int64_t count) {
    for (int64_t i = 0; i < count; i += kWidth) {
      const int n = int(count - i < kWidth ? count - i : kWidth);
      V::load(sums + i, n).store(results + i, n);
    }
  }

  // columns_[m][i] = a[first + i][column + m]; adds the columns to sums_. Row by row: the columns
  // of a row are neighbours, while the distance of two rows defeats the hardware's prefetching.
  void transpose_block(const RowSource<T>& a, int64_t column, int64_t count, int64_t first,
                       int64_t depth) {
    for (int64_t i = 0; i < depth; i += kWidth) {
      const int n = int(depth - i < kWidth ? depth - i : kWidth);
      const T* rows[kWidth];
      for (int v = 0; v < n; ++v) rows[v] = a.row(first + i + v) + column;
      for (int64_t m = 0; m < count; m += kWidth) {
        const int valid = int(count - m < kWidth ? count - m : kWidth);
        V square[kWidth];
        V sum = V::load(sums_ + m);
        for (int v = 0; v < kWidth; ++v) {
          square[v] = v < n ? V::load(rows[v] + m, valid) : zero<V>();
          sum = sum + square[v];
        }
        sum.store(sums_ + m);
        transpose<1>(square);
        for (int v = 0; v < valid; ++v) square[v].store(columns_ + (m + v) * depth_ + i);
      }
    }
  }

  // out(m) = or += sum over k < depth of a(m)[k] * b[first + k], for m < count.
  template <class A, class Out>
  FASTRNN_FN void multiply_block(const RowSource<T>& b, int64_t first, int64_t depth, int64_t width,
                                 int64_t count, bool pack, bool accumulate, const A& a,
                                 const Out& out) {
    const Shape shape = {width, depth};
    for (int64_t panel = 0; panel < shape.panels(); ++panel) {
      const int vectors = shape.vectors(panel);
      const int valid = int(shape.units_of(panel)) - (vectors - 1) * kWidth;  // of the last
      const int64_t column = shape.first_unit(panel);
      const C* weights = panel_;
      int64_t stride = vectors * kWidth;
      if (kNarrow<T> || pack || valid < kWidth || b.index) {
        pack_rows(b, first, depth, column, vectors, valid);
      } else if constexpr (!kNarrow<T>) {
        weights = b.row(first) + column, stride = b.stride;
      }
      switch (vectors) {
        case 1:
          multiply_panel<1>(weights, stride, depth, count, valid, column, accumulate, a, out);
          break;
        case 2:
          multiply_panel<2>(weights, stride, depth, count, valid, column, accumulate, a, out);
          break;
        case 3:
          multiply_panel<3>(weights, stride, depth, count, valid, column, accumulate, a, out);
          break;
        default:
          multiply_panel<4>(weights, stride, depth, count, valid, column, accumulate, a, out);
      }
    }
  }

  void pack_rows(const RowSource<T>& b, int64_t first, int64_t depth, int64_t column, int vectors,
                 int valid) {
    C* to = panel_;
    for (int64_t k = 0; k < depth; k += Terms<T>::kInputs) {
      // A panel takes a part of each row, further apart than the hardware looks ahead.
      for (int i = 0; i < Terms<T>::kInputs && k + kAhead + i < depth; ++i) {
        const char* ahead = (const char*)(b.row(first + k + kAhead + i) + column);
        for (int64_t line = 0; line < vectors * kWidth * int64_t(sizeof(T)); line += 64)
          __builtin_prefetch(ahead + line);
      }
      const T* from = b.row(first + k) + column;
      const T* second = k + 1 < depth ? b.row(first + k + 1) + column : nullptr;
      for (int u = 0; u < vectors; ++u, to += kWidth)
        slots_across(from + u * kWidth, second ? second + u * kWidth : nullptr,
                     u == vectors - 1 ? valid : kWidth)
            .store(to);
    }
  }

  template <int P, class A, class Out>
  void multiply_panel(const C* weights, int64_t stride, int64_t depth, int64_t count, int valid,
                      int64_t column, bool accumulate, const A& a, const Out& out) {
    constexpr int kRows = TileRows<P>::kRows;
    alignas(64) static constexpr C kZeros[P * kWidth] = {};
    alignas(64) C tile[kRows * P * kWidth];
    const T* rows[kRows];
    const C* start[kRows];
    C* to[kRows];
    const int64_t tiles = (count + kRows - 1) / kRows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t m = count * t / tiles;
      const int n = int(count * (t + 1) / tiles - m);
      for (int i = 0; i < n; ++i) {
        rows[i] = a(m + i);
        to[i] = valid == kWidth ? out(m + i) + column : tile + i * P * kWidth;
        start[i] = accumulate && valid == kWidth ? to[i] : kZeros;
      }
      compute_tile<T, P>(n, rows, weights, stride, depth, start, to);
      if (valid == kWidth) continue;
      for (int i = 0; i < n; ++i) {
        for (int u = 0; u < P; ++u) {
          C* result = out(m + i) + column + u * kWidth;
          const int lanes = u == P - 1 ? valid : kWidth;
          const V sum = V::load(tile + (i * P + u) * kWidth);
          (accumulate ? V::load(result, lanes) + sum : sum).store(result, lanes);
        }
      }
    }
  }

  const int64_t height_, depth_;  // of the largest block
  T* columns_;                    // (height_, depth_) transposed block of a
  C* panel_;                      // (depth_, a panel's width) of b
  C* sums_;                       // (height_) sums of a's columns
  C* results_;                    // (a block, widest) sums of results that are narrower, else null
};

FASTRNN_NAMESPACE_END
