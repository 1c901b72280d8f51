// Computes: what layer normalisation needs of a row of numbers: mean and 1 / standard deviation, as F.layer_norm has
//   them, and its adjoint.
// Mapping: one thread has a whole row, a vector of units at a time; lanes are added in a fixed order.
#pragma once
#include "cpu/layout.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
constexpr double kNormEps = 1e-5;  // torch's

// Which of a cell's gates are normalised together. GRU: r and z, and n by itself.
template <class C>
struct NormParts {
  static constexpr int kCount = 1;
  static constexpr int of(int) { return 0; }
  static constexpr int gates(int) { return C::kGates; }
};
template <>
struct NormParts<Gru> {
  static constexpr int kCount = 2;
  static constexpr int of(int gate) { return gate / 2; }
  static constexpr int gates(int part) { return 2 - part; }
};
template <>
struct NormParts<void> {  // of c, by itself
  static constexpr int kCount = 1;
  static constexpr int of(int) { return 0; }
  static constexpr int gates(int) { return 1; }
};

template <class T>
FUSEDRNN_INLINE T total(Vec<T> v) {
  T lanes[Vec<T>::lanes], sum = 0;
  v.store(lanes);
  for (const T lane : lanes) sum += lane;
  return sum;
}
// x in the first n lanes, else 0.
template <class T>
FUSEDRNN_INLINE Vec<T> first_lanes(Vec<T> x, int64_t n) {
  if (n >= Vec<T>::lanes) return x;
  T lanes[Vec<T>::lanes];
  x.store(lanes);
  return Vec<T>::load(lanes, n);
}

// Of one row of G gates with H units each, by parts.
template <class T, class Parts, int G>
struct Normalised {
  using V = Vec<T>;
  static constexpr int W = V::lanes, P = Parts::kCount;
  const int64_t H;
  V mean[P], scale[P];  // 1 / standard deviation

  template <class F>
  FUSEDRNN_INLINE void each(const F& body) const {
    for (int64_t j = 0; j < H; j += W)
      for (int g = 0; g < G; g++) body(j, g);
  }
  // Sums over the units of each part, by its number of them.
  template <class F>
  FUSEDRNN_INLINE void means(V* to, const F& term) const {
    V sum[P];
    for (int p = 0; p < P; p++) sum[p] = V(T(0));
    each([&](int64_t j, int g) __attribute__((always_inline)) { sum[Parts::of(g)] = sum[Parts::of(g)] + term(j, g); });
    for (int p = 0; p < P; p++) to[p] = V(total(sum[p]) / T(Parts::gates(p) * H));
  }

  // load(j, g): the numbers of gate g from unit j on, zeros beyond H.
  template <class Load>
  FUSEDRNN_INLINE Normalised(int64_t H_, const Load& load) : H(H_) {
    means(mean, load);
    V variance[P];
    means(variance, [&](int64_t j, int g) __attribute__((always_inline)) {
      const V off = first_lanes(load(j, g) - mean[Parts::of(g)], H - j);
      return off * off;
    });
    for (int p = 0; p < P; p++) {
      const T square = variance[p].v[0] + T(kNormEps);
      scale[p] = V(T(1) / T(sizeof(T) == 4 ? __builtin_sqrtf(float(square)) : __builtin_sqrt(double(square))));
    }
  }
  FUSEDRNN_INLINE V of(V x, int g) const { return (x - mean[Parts::of(g)]) * scale[Parts::of(g)]; }

  // The adjoint: from the gradients of the normalised numbers, upward(j, g) with zeros beyond H, to those of the
  // numbers, out(j, g, gradient); what it hands out beyond H is nobody's.
  template <class Load, class Upward, class Out>
  FUSEDRNN_INLINE void back(const Load& load, const Upward& upward, const Out& out) const {
    V even[P], along[P];
    means(even, upward);
    means(along, [&](int64_t j, int g) __attribute__((always_inline)) { return upward(j, g) * of(load(j, g), g); });
    each([&](int64_t j, int g) __attribute__((always_inline)) {
      const int p = Parts::of(g);
      const V rest = upward(j, g) - even[p] - of(load(j, g), g) * along[p];
      out(j, g, rest * scale[p]);
    });
  }
};

// What the LSTM's output takes the tanh of; `at` is of the unit's gain.
template <class T>
FUSEDRNN_INLINE Vec<T> scaled_c(const Norms<const T>& norms, int64_t at, int64_t n, Vec<T> normalised) {
  const Vec<T> shift = norms.c_shift ? Vec<T>::load(norms.c_shift + at, n) : Vec<T>(T(0));
  return multiply_add(normalised, Vec<T>::load(norms.c + at, n), shift);
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
