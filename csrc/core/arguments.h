// The arguments of a layer call as plain numbers and pointers: what fastrnn/problem.py's Problem
// becomes on this side. Nothing here is checked; Problem has done that.
//
// T steps, B batch rows, I input features, H units, R outputs (H, or the projection's), D
// directions, G gates, S saved values per unit. Row (t, b) of a padded batch is t * B + b; of
// packed data, offset[t] + b. All tensors but x and reset are contiguous. T is the type of values
// in memory; cell states between the steps and their gradients are of the type of the arithmetic.
#pragma once

#include "storage.h"

namespace fastrnn {

// In the order of the dispatch table; names as in fastrnn/cells.py.
enum class CellKind : int {
  rnn_tanh,
  rnn_relu,
  rnn_sigmoid,
  rnn_identity,
  lstm,
  gru,
  gru_reset_before,
};
constexpr int kCellKinds = 7;

template <class T>
struct Weights {
  const T* w_ih = nullptr;  // (G*H, I), or null: x is W_ih x already, (D*G*H) features
  const T* w_hh = nullptr;  // (G*H, R)
  const T* b_ih = nullptr;  // (G*H) or null
  const T* b_hh = nullptr;  // (G*H) or null
  const T* w_hr = nullptr;  // (R, H) or null
};

struct Sizes {
  int64_t steps = 0, batch = 0, rows = 0, input = 0, hidden = 0, output = 0;
  int directions = 1;
  const int64_t* lengths = nullptr;      // (B) or null: every row has all steps
  const int64_t* batch_sizes = nullptr;  // (T) or null: packed data
  const uint8_t* reset = nullptr;        // (T, B) or null, with the strides below
  int64_t reset_step = 0, reset_row = 0;
};

// Features of x that W_ih multiplies.
template <class Arguments>
int64_t input_depth(const Arguments& p) {
  return p.weights[0].w_ih ? p.input : 0;
}

template <class T>
struct Forward : Sizes {
  const T* x = nullptr;  // (T, B, I) with the strides below, or packed (rows, I)
  int64_t x_step = 0, x_row = 0;
  const T* h0 = nullptr;  // (D, B, R) or null
  const T* c0 = nullptr;  // (D, B, H) or null
  Weights<T> weights[2];
  // The weights as pack_weights left them, or null: packed if it pays.
  const Compute<T>* packed[2] = {};
  T* y = nullptr;                     // (rows, D*R)
  T* h_n = nullptr;                   // (D, B, R)
  T* c_n = nullptr;                   // (D, B, H)
  Compute<T>* cell_states = nullptr;  // (rows, D*H) or null
  T* reserve = nullptr;               // (D, rows, S*H [+ R]) or null when no backward will follow
};

// Where the gradients of a direction's weights go; null where one is not needed.
template <class T>
struct WeightGrads {
  T* w_ih = nullptr;
  T* w_hh = nullptr;
  T* b_ih = nullptr;
  T* b_hh = nullptr;
  T* w_hr = nullptr;
};

template <class T>
struct Backward : Sizes {
  const T* x = nullptr;  // as in Forward
  int64_t x_step = 0, x_row = 0;
  const T* h0 = nullptr;
  const T* c0 = nullptr;
  Weights<T> weights[2];
  const Compute<T>* cell_states = nullptr;
  T* reserve = nullptr;
  bool donated = false;                          // whether the reserve may be overwritten
  const T* grad_y = nullptr;                     // (rows, D*R)
  const T* grad_h_n = nullptr;                   // (D, B, R)
  const T* grad_c_n = nullptr;                   // (D, B, H) or null
  const Compute<T>* grad_cell_states = nullptr;  // (rows, D*H) or null
  // Written; each null when not needed.
  T* grad_x = nullptr;   // (rows, I)
  T* grad_h0 = nullptr;  // (D, B, R)
  T* grad_c0 = nullptr;  // (D, B, H)
  WeightGrads<T> grads[2];
};

}  // namespace fastrnn
