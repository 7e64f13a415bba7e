// c' = f c + i g, h' = o tanh(c'). Derivation: README.md beside this file.
#pragma once

#include "../activation.h"

FASTRNN_NAMESPACE_BEGIN

struct Lstm {
  static constexpr int kGates = 4;  // i f g o, as torch orders them
  static constexpr int kSaved = 4;  // i f g o after their activation
  static constexpr bool kCellState = true;
  static constexpr bool kTwoStage = false;
  static constexpr bool kDirect = false;
  static constexpr int kSlot[kGates] = {0, 1, 2, 3};

  template <class V>
  static FASTRNN_FN void forward(const V* x, const V* r, V, V c_prev, V* saved, V& h, V& c) {
    const V i = saved[0] = sigmoid(x[0] + r[0]);
    const V f = saved[1] = sigmoid(x[1] + r[1]);
    const V g = saved[2] = tanh(x[2] + r[2]);
    const V o = saved[3] = sigmoid(x[3] + r[3]);
    c = fma(f, c_prev, i * g);
    h = o * tanh(c);
  }

  template <class V>
  static FASTRNN_FN V output(const V* saved, V c, V) {
    return saved[3] * tanh(c);
  }

  template <class V>
  static FASTRNN_FN void backward(const V* saved, V, V c_prev, V c, V dh, V dc, V* da, V&,
                                  V& dc_prev) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = tanh(c);
    const V dc_all = fma(dh * o, one<V>() - tanh_c * tanh_c, dc);
    da[0] = dc_all * g * i * (one<V>() - i);
    da[1] = dc_all * c_prev * f * (one<V>() - f);
    da[2] = dc_all * i * (one<V>() - g * g);
    da[3] = dh * tanh_c * o * (one<V>() - o);
    dc_prev = dc_all * f;
  }
};

FASTRNN_NAMESPACE_END
