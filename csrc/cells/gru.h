// GRU, the variant of torch and cuDNN (Cho et al. 2014, arXiv:1406.1078v1, with the reset gate behind the product):
//   r = sigmoid(a_r)   z = sigmoid(a_z)   n = tanh(a_n + r q)   h' = (1 - z) n + z h
// a_r, a_z: input and recurrent product and both biases; a_n = W_in x + b_in; q = W_hn h + b_hn.
#pragma once
#include "cells/activations.h"

namespace fusedrnn {
struct Gru {
  static constexpr int kGates = 3;  // of a product: r z n
  static constexpr int kParts = 4;  // pre-activations of a unit: a_r a_z a_n q
  static constexpr int kKept = 4;   // what backward needs of a step: r z n q
  static constexpr bool kHasC = false;

  template <class V>
  static FUSEDRNN_CELL V forward(const V* a, V h, V&, V* kept) {
    const V r = sigmoid(a[0]), z = sigmoid(a[1]), n = hyperbolic_tangent(multiply_add(r, a[3], a[2]));
    kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = a[3];
    return multiply_add(z, h - n, n);
  }

  // dh: gradient of h'. dkept: gradients that reach the kept values from a second derivative (zeros in the first).
  // Writes the gradients of the four pre-activations; returns the part of dh that reaches h past the product.
  template <class V>
  static FUSEDRNN_CELL V backward(V dh, const V* kept, const V* dkept, V h, V, V, V, V&, V* da) {
    const V one(1), r = kept[0], z = kept[1], n = kept[2], q = kept[3];
    da[2] = multiply_add(dh, one - z, dkept[2]) * subtract_product(one, n, n);
    da[1] = multiply_add(dh, h - n, dkept[1]) * (z * (one - z));
    da[0] = multiply_add(da[2], q, dkept[0]) * (r * (one - r));
    da[3] = multiply_add(da[2], r, dkept[3]);
    return dh * z;
  }
};
}  // namespace fusedrnn
