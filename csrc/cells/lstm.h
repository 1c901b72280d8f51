// LSTM without peepholes (Gers et al. 2000; torch and cuDNN):
//   i, f, o = sigmoid(a_i, a_f, a_o)   g = tanh(a_g)   c' = f c + i g   h' = o tanh(c')
#pragma once
#include "cells/activations.h"

namespace fusedrnn {
struct Lstm {
  static constexpr int kGates = 4, kParts = 4;  // i f g o
  static constexpr int kKept = 4;               // i f g o; c' is kept as an output
  static constexpr bool kHasC = true;

  template <class V>
  static FUSEDRNN_CELL V forward(const V* a, V, V& c, V* kept) {
    c = next_c(a, c, kept);
    return kept[3] * hyperbolic_tangent(c);
  }
  template <class V>
  static FUSEDRNN_CELL V next_c(const V* a, V c, V* kept) {
    const V i = sigmoid(a[0]), f = sigmoid(a[1]), g = hyperbolic_tangent(a[2]), o = sigmoid(a[3]);
    kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o;
    return multiply_add(f, c, i * g);
  }

  // The c' of a step whose state became another one.
  template <class V>
  static FUSEDRNN_CELL V own_c(const V* kept, V c_before) {
    return multiply_add(kept[1], c_before, kept[0] * kept[2]);
  }

  // c: the step's c', c_before: the one it started from. dc: in, the gradient of c' from the next step (and of c' as an
  // output); out, of c_before.
  template <class V>
  static FUSEDRNN_CELL V backward(V dh, const V* kept, const V* dkept, V, V, V c_before, V c, V& dc, V* da) {
    const V one(1), tanh_c = hyperbolic_tangent(c);
    dc = multiply_add(dh * kept[3], subtract_product(one, tanh_c, tanh_c), dc);
    return backward_from_c(dh, kept, dkept, c_before, tanh_c, dc, da);
  }
  // The same from the whole gradient of c', where h' = o tanh_c. dc: in, that; out, of c_before.
  template <class V>
  static FUSEDRNN_CELL V backward_from_c(V dh, const V* kept, const V* dkept, V c_before, V tanh_c, V& dc, V* da) {
    const V one(1), i = kept[0], f = kept[1], g = kept[2], o = kept[3], sum = dc;
    da[0] = multiply_add(sum, g, dkept[0]) * (i * (one - i));
    da[1] = multiply_add(sum, c_before, dkept[1]) * (f * (one - f));
    da[2] = multiply_add(sum, i, dkept[2]) * subtract_product(one, g, g);
    da[3] = multiply_add(dh, tanh_c, dkept[3]) * (o * (one - o));
    dc = sum * f;
    return V(0);
  }
};
}  // namespace fusedrnn
