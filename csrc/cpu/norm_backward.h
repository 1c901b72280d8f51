// Computes: what backward.h does about layer normalisation.
// Mapping: a thread has whole rows; those of a step one after the other.
#pragma once
#include "cpu/backward.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
// Before the pointwise half of a step, of the LSTM: what reaches c by way of its normalisation. Left in the row of the
// ring, until that half overwrites it: the tanh that multiplied o, and the gradient of c.
template <class T, class C>
template <bool kNoise>
void Backward<T, C>::back_to_c(int64_t s, int64_t step, int64_t row0, int64_t row1) const {
  const int64_t t = l.time(s, step);
  for (int64_t i = row0; i < row1; i++) {
    const int64_t b = batch[i];
    T *const seen = ring + i * l.ldg, *const of_c = seen + l.Hp, *const own_c = of_c + l.Hp, *const up = own_c + l.Hp;
    for (int64_t v = 0; v < l.hv; v++) {
      const int64_t j = v * W, n = l.H - j;
      V kept[Z + 1], c = V::load(f.cs.at(t, b, s) + j, n);
      if (kNoise && f.noise.zoneout_c > 0) {
        load_kept(t, b, s, v, kept);
        c = C::own_c(kept, V::load(c_before[i] + j, n));
      }
      c.store(own_c + j);
    }
    const auto load = [&](int64_t j, int) __attribute__((always_inline)) { return V::load(own_c + j); };
    const Normalised<T, NormParts<void>, 1> row(l.H, load);
    for (int64_t v = 0; v < l.hv; v++) {
      const int64_t j = v * W, n = l.H - j;
      V kept[Z + 1], g = V::load(dh(s, b) + j);
      load_kept(t, b, s, v, kept);
      if (f.dy) g = g + V::load(f.dy.at(t, b, s) + j, n);
      if constexpr (kNoise) g = portion(V(T(1)) - old_share<T>(f.noise, kZoneoutH, t, b, s, j), g);
      const V tanh_c = hyperbolic_tangent(scaled_c(f.norms, s * l.H + j, n, row.of(load(j, 0), 0)));
      const V d = g * kept[3] * subtract_product(V(T(1)), tanh_c, tanh_c);
      d.store(f.dq.at(t, b, s) + j, n);
      tanh_c.store(seen + j);
      (d * V::load(f.norms.c + s * l.H + j, n)).store(up + j);
    }
    row.back(
        load, [&](int64_t j, int) __attribute__((always_inline)) { return V::load(up + j); },
        [&](int64_t j, int, V d) __attribute__((always_inline)) { d.store(of_c + j); });
  }
}

// Behind the pointwise half: the gates' gradients in the ring become those of the product with W_hh.
template <class T, class C>
void Backward<T, C>::back_to_product(int64_t s, int64_t step, int64_t row0, int64_t row1) const {
  const int64_t t = l.time(s, step);
  for (int64_t i = row0; i < row1; i++) {
    const int64_t b = batch[i];
    T* const gates = ring + i * l.ldg + kFirstH * l.Hp;
    const T* const product = f.products.at(t, b, s);
    T* const to = f.dproducts.at(t, b, s);
    const auto load = [&](int64_t j, int g) __attribute__((always_inline)) {
      return V::load(product + g * l.H + j, l.H - j);
    };
    const auto upward = [&](int64_t j, int g) __attribute__((always_inline)) {
      return V::load(gates + g * l.Hp + j) * V::load(f.norms.hh + (s * G + g) * l.H + j, l.H - j);
    };
    const Normalised<T, NormParts<C>, G> row(l.H, load);
    row.back(load, upward, [&](int64_t j, int g, V d) __attribute__((always_inline)) {
      d.store(gates + g * l.Hp + j);
      d.store(to + g * l.H + j, l.H - j);
    });
  }
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
