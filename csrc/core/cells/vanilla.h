// h' = g(a), a = W_ih x + b_ih + W_hh h + b_hh. Derivation: README.md beside this file.
#pragma once

#include "../activation.h"

FASTRNN_NAMESPACE_BEGIN

// g, and g' written in terms of the value g took: that value is all that is saved.
struct Tanh {
  template <class V>
  static FASTRNN_FN V value(V a) {
    return tanh(a);
  }
  template <class V>
  static FASTRNN_FN V backward(V h, V dh) {
    return dh * (one<V>() - h * h);
  }
};
struct Relu {
  template <class V>
  static FASTRNN_FN V value(V a) {
    return positive_part(a);
  }
  template <class V>
  static FASTRNN_FN V backward(V h, V dh) {
    return zero_unless_positive(h, dh);
  }
};
struct Sigmoid {
  template <class V>
  static FASTRNN_FN V value(V a) {
    return sigmoid(a);
  }
  template <class V>
  static FASTRNN_FN V backward(V h, V dh) {
    return dh * h * (one<V>() - h);
  }
};
struct Identity {
  template <class V>
  static FASTRNN_FN V value(V a) {
    return a;
  }
  template <class V>
  static FASTRNN_FN V backward(V, V dh) {
    return dh;
  }
};

template <class Activation>
struct Vanilla {
  static constexpr int kGates = 1;
  static constexpr int kSaved = 1;  // h
  static constexpr bool kCellState = false;
  static constexpr bool kTwoStage = false;
  static constexpr bool kDirect = false;  // dh_direct of backward is always 0
  // Slot of each gate's input part in the saved values of a unit.
  static constexpr int kSlot[kGates] = {0};

  // x: W_ih x + b_ih; r: W_hh h + b_hh, by gate.
  template <class V>
  static FASTRNN_FN void forward(const V* x, const V* r, V, V, V* saved, V& h, V&) {
    h = saved[0] = Activation::value(x[0] + r[0]);
  }

  // h of a step from what was saved of it.
  template <class V>
  static FASTRNN_FN V output(const V* saved, V, V) {
    return saved[0];
  }

  // dh: gradient of h. da: gradients of the pre-activations, by slot. dh_direct: what reaches
  // h_{t-1} other than through W_hh.
  template <class V>
  static FASTRNN_FN void backward(const V* saved, V, V, V, V dh, V, V* da, V&, V&) {
    da[0] = Activation::backward(saved[0], dh);
  }
};

FASTRNN_NAMESPACE_END
