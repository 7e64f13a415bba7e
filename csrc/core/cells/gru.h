// r, z = sigmoid(..), n = tanh(..), h' = (1 - z) n + z h, in both forms of the literature.
// Derivation, and the other convention for z: README.md beside this file.
#pragma once

#include "../activation.h"

FASTRNN_NAMESPACE_BEGIN

// h' = (1 - z) n + z h as n + z (h - n).
template <class V>
FASTRNN_FN V gru_output(V z, V n, V h_prev) {
  return fma(z, h_prev - n, n);
}

// n = tanh(W_in x + b_in + r (W_hn h + b_hn)): torch, cuDNN.
struct Gru {
  static constexpr int kGates = 3;  // r z n, as torch orders them
  static constexpr int kSaved = 4;  // r z hn n, where hn = W_hn h + b_hn
  static constexpr bool kCellState = false;
  static constexpr bool kTwoStage = false;
  static constexpr bool kDirect = true;
  // The gradients take the slots of their values; r, z, hn meet W_hh and are contiguous.
  static constexpr int kSlot[kGates] = {0, 1, 3};

  template <class V>
  static FASTRNN_FN void forward(const V* x, const V* r, V h_prev, V, V* saved, V& h, V&) {
    const V reset = saved[0] = sigmoid(x[0] + r[0]);
    const V z = saved[1] = sigmoid(x[1] + r[1]);
    saved[2] = r[2];
    const V n = saved[3] = tanh(fma(reset, r[2], x[2]));
    h = gru_output(z, n, h_prev);
  }

  template <class V>
  static FASTRNN_FN V output(const V* saved, V, V h_prev) {
    return gru_output(saved[1], saved[3], h_prev);
  }

  template <class V>
  static FASTRNN_FN void backward(const V* saved, V h_prev, V, V, V dh, V, V* da, V& dh_direct,
                                  V&) {
    const V r = saved[0], z = saved[1], hn = saved[2], n = saved[3];
    const V dn = dh * (one<V>() - z) * (one<V>() - n * n);
    da[0] = dn * hn * r * (one<V>() - r);
    da[1] = dh * (h_prev - n) * z * (one<V>() - z);
    da[2] = dn * r;
    da[3] = dn;
    dh_direct = dh * z;
  }
};

// n = tanh(W_in x + b_in + W_hn (r h) + b_hn): Cho et al. 2014. The product of the candidate
// needs all of r h, so a step has two stages.
struct GruResetBefore {
  static constexpr int kGates = 3;
  static constexpr int kFirstGates = 2;  // r z
  static constexpr int kSaved = 3;       // r z n
  static constexpr bool kCellState = false;
  static constexpr bool kTwoStage = true;
  static constexpr bool kDirect = true;
  static constexpr int kSlot[kGates] = {0, 1, 2};

  // First stage; r: W_h{r,z} h + b. mid = r h goes into the product of the second.
  template <class V>
  static FASTRNN_FN void forward_gates(const V* x, const V* r, V h_prev, V* saved, V& mid) {
    saved[0] = sigmoid(x[0] + r[0]);
    saved[1] = sigmoid(x[1] + r[1]);
    mid = saved[0] * h_prev;
  }

  // Second stage; x_n: W_in x + b_in, r_n: W_hn mid + b_hn.
  template <class V>
  static FASTRNN_FN void forward_candidate(V x_n, V r_n, V z, V h_prev, V& n, V& h) {
    n = tanh(x_n + r_n);
    h = gru_output(z, n, h_prev);
  }

  template <class V>
  static FASTRNN_FN V output(const V* saved, V, V h_prev) {
    return gru_output(saved[1], saved[2], h_prev);
  }

  // First stage of backward: da of z and n; da of n then goes through W_hn to give d(r h).
  template <class V>
  static FASTRNN_FN void backward_candidate(const V* saved, V h_prev, V dh, V& da_z, V& da_n,
                                            V& dh_direct) {
    const V z = saved[1], n = saved[2];
    da_n = dh * (one<V>() - z) * (one<V>() - n * n);
    da_z = dh * (h_prev - n) * z * (one<V>() - z);
    dh_direct = dh * z;
  }

  // Second stage; dmid: gradient of r h.
  template <class V>
  static FASTRNN_FN void backward_gates(V r, V h_prev, V dmid, V& da_r, V& dh_direct) {
    da_r = dmid * h_prev * r * (one<V>() - r);
    dh_direct = fma(dmid, r, dh_direct);
  }
};

FASTRNN_NAMESPACE_END
