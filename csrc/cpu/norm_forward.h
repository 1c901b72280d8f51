// Computes: a step of forward.h with layer normalisation.
// Mapping: as there, but a row's products are all there before the first of its units goes on: a thread has whole rows.
#pragma once
#include "cpu/forward.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
template <class T, class C>
void Forward<T, C>::take_normed_step(int64_t s, int64_t step, int64_t t, int64_t row0, int64_t rows) const {
  T* const products = mine + at.products;  // [rows][vectors of units][gates][lanes]
  for (int64_t p = 0; p < l.panels.count; p++)
    multiply(s, p, products + l.panels.first(p) * G * W, l.ldp, nullptr, rows);
  for (int64_t i = 0; i < rows; i++) {
    const int64_t b = batch[row0 + i];
    add_normalised(s, t, b, row0 + i, products + i * l.ldp);
    if constexpr (C::kHasC) {
      if (f.noise.any())
        step_row<true>(s, step, t, b, i, row0 + i);
      else
        step_row<false>(s, step, t, b, i, row0 + i);
    }
  }
  if constexpr (!C::kHasC)
    for (int64_t p = 0; p < l.panels.count; p++) step_panel(s, step, t, row0, rows, p);
}

// Row `in_chunk` of the ring: the product that its pre-activations lack.
template <class T, class C>
void Forward<T, C>::add_normalised(int64_t s, int64_t t, int64_t b, int64_t in_chunk, const T* products) const {
  const auto load = [&](int64_t j, int g) __attribute__((always_inline)) { return V::load(products + j * G + g * W); };
  const Normalised<T, NormParts<C>, G> row(l.H, load);
  for (int64_t p = 0; p < l.panels.count; p++) {
    const int64_t width = l.panels.width(p);
    T* to = ring(p) + in_chunk * X * W * width;
    for (int64_t v = l.panels.first(p); v < l.panels.first(p + 1); v++, to += X * W)
      for (int g = 0; g < G; g++) {
        const int64_t j = v * W, n = l.H - j;
        const V product = load(j, g), gain = V::load(f.norms.hh + (s * G + g) * l.H + j, n);
        T* const gate = to + (kFirstH + g) * W;
        multiply_add(row.of(product, g), gain, V::load(gate)).store(gate);
        if (f.products) product.store(f.products.at(t, b, s) + g * l.H + j, n);
      }
  }
}

// The LSTM's row i: c of all units, then h, which sees c normalised.
template <class T, class C>
template <bool kNoise>
void Forward<T, C>::step_row(int64_t s, int64_t step, int64_t t, int64_t b, int64_t i, int64_t in_chunk) const {
  T *const own_c = mine + at.own_c, *const open = own_c + l.Hp;
  for (int64_t v = 0; v < l.hv; v++) {
    const int64_t j = v * W;
    const T* const gates = ring(v) + in_chunk * X * W;  // panels of an LSTM are one vector wide
    V part[X], kept[Z + 1];
    for (int slot = 0; slot < X; slot++) part[Slots<C>::part(slot)] = V::load(gates + slot * W);
    const V c_old = V::load(c_rows[i] + j), c = C::next_c(part, c_old, kept);
    c.store(own_c + j);  // 0 beyond H: there all pre-activations are
    kept[3].store(open + j);
    pass_c<kNoise>(s, t, b, j, c_old, c);
    keep(t, b, s, v, kept);
  }
  const auto load = [&](int64_t j, int) __attribute__((always_inline)) { return V::load(own_c + j); };
  const Normalised<T, NormParts<void>, 1> row(l.H, load);
  for (int64_t j = 0; j < l.H; j += W) {
    const V seen = scaled_c(f.norms, s * l.H + j, l.H - j, row.of(load(j, 0), 0));
    pass_h<kNoise>(s, step, t, b, j, V::load(h_rows[i] + j), V::load(open + j) * hyperbolic_tangent(seen));
  }
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
