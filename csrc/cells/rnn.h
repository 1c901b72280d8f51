// Elman's RNN (1990): h' = tanh(a) or h' = relu(a), a = W_ih x + b_ih + W_hh h + b_hh. Nothing is kept but the output
// itself.
#pragma once
#include "cells/activations.h"

namespace fusedrnn {
template <bool kRelu>
struct Rnn {
  static constexpr int kGates = 1, kParts = 1, kKept = 0;
  static constexpr bool kHasC = false;

  template <class V>
  static FUSEDRNN_CELL V forward(const V* a, V, V&, V*) {
    if constexpr (kRelu)
      return positive_part(a[0]);
    else
      return hyperbolic_tangent(a[0]);
  }

  // y: the step's output.
  template <class V>
  static FUSEDRNN_CELL V backward(V dh, const V*, const V*, V, V y, V, V, V&, V* da) {
    if constexpr (kRelu)
      da[0] = where_positive(y, dh);
    else
      da[0] = dh * subtract_product(V(1), y, y);
    return V(0);
  }
};
}  // namespace fusedrnn
