// The number that the kernels hand to the cells: a float whose sigmoid and tanh are those of the precision.
#pragma once
#include "cells/activations.h"
#include "cuda/device_api.h"

namespace fusedrnn::cuda {
template <class P>
struct Value {
  float x;
  Value() = default;
  FUSEDRNN_DEVICE Value(float v) : x(v) {}

  friend FUSEDRNN_DEVICE Value operator+(Value a, Value b) { return a.x + b.x; }
  friend FUSEDRNN_DEVICE Value operator-(Value a, Value b) { return a.x - b.x; }
  friend FUSEDRNN_DEVICE Value operator*(Value a, Value b) { return a.x * b.x; }
  friend FUSEDRNN_DEVICE Value sigmoid(Value a) { return sigmoid_of<P>(a.x); }
  friend FUSEDRNN_DEVICE Value hyperbolic_tangent(Value a) { return tanh_of<P>(a.x); }
  friend FUSEDRNN_DEVICE Value multiply_add(Value a, Value b, Value c) { return fmaf(a.x, b.x, c.x); }
  friend FUSEDRNN_DEVICE Value subtract_product(Value c, Value a, Value b) { return fmaf(-a.x, b.x, c.x); }
  friend FUSEDRNN_DEVICE Value positive_part(Value a) { return a.x < 0 ? 0 : a.x; }
  friend FUSEDRNN_DEVICE Value where_positive(Value a, Value b) { return a.x <= 0 ? 0 : b.x; }
};
}  // namespace fusedrnn::cuda
