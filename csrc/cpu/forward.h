// Computes: all T steps of S streams of a GRU, LSTM or RNN, from x (projecting a chunk of steps at a time) or from
//   given projections.
// Mapping: hidden units are cut into panels of vectors; a panel's product goes to a gate buffer in L1 or L2 and its
//   pointwise half follows at once. Threads split streams, then rows (no synchronisation at all), or hidden units.
// Memory: weights are packed once a call, K-major, gates of a unit side by side, or, for few rows, read in place. The
//   ring holds the pre-activations of a chunk: rows that are real, without gaps, so a row past its length costs
//   nothing. A row that is reset reads its state from a row of zeros.
// Synchronisation: one spin barrier a step between threads that share hidden units; none otherwise.
// Requires: nothing of H, B, I, T; the last vector of units is masked where it is stored outside the scratch memory.
#pragma once
#include "cpu/barrier.h"
#include "cpu/dots.h"
#include "cpu/noise.h"
#include "cpu/norm.h"
#include "cpu/scratch.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
template <class T, class C>
struct Forward {
  using V = Vec<T>;
  static constexpr int W = V::lanes, G = C::kGates, X = C::kParts, Z = C::kKept, kFirstH = Slots<C>::kFirstH;

  const ForwardCall<T>& f;
  const Layout<T, C> l;
  const Plan& plan;
  const Place me;
  const ForwardScratch<T, C> at;
  const int64_t p0, p1, v0, v1;  // own panels and vectors of units
  T* const mine;
  T* const zeros;
  const T** const inputs;  // rows of x, or of gates_x, of the chunk's real steps in order
  int64_t* const batch;    // their batch rows
  int64_t* const first;    // where each step's rows begin among them
  const T** const h_rows;  // of the step at hand: the states its rows start from
  const T** const c_rows;
  const T** const seen_rows;  // and what W_hh sees of them: with dropout, less
  Barrier all, team;

  Forward(const ForwardCall<T>& call, int thread)
      : f(call),
        l(call.problem),
        plan(call.plan),
        me(plan, l, thread),
        at(l, plan),
        p0(l.panels.share(me.column, plan.columns)),
        p1(l.panels.share(me.column + 1, plan.columns)),
        v0(l.panels.first(p0)),
        v1(l.panels.first(p1)),
        mine(f.scratch + at.threads + thread * at.per_thread),
        zeros(f.scratch + at.zeros),
        inputs((const T**)(mine + at.inputs)),
        batch((int64_t*)(mine + at.batch)),
        first((int64_t*)(mine + at.first)),
        h_rows((const T**)(mine + at.h_rows)),
        c_rows((const T**)(mine + at.c_rows)),
        seen_rows((const T**)(mine + at.seen_rows)),
        all{f.epochs, plan.threads(), thread},
        team{f.epochs + 1 + 8 * (thread - me.column), plan.columns, me.column} {}

  T* packed_bias(int64_t s) const { return f.scratch + at.weights + s * l.packed_forward(plan); }
  T* packed_x(int64_t s) const { return packed_bias(s) + l.biases(); }
  T* packed_h(int64_t s) const { return packed_x(s) + l.I * G * l.Hp; }
  T* state(int64_t s, int64_t step) const { return f.scratch + at.h + (2 * s + (step & 1)) * l.B * l.ldh; }
  T* cell(int64_t s) const { return f.scratch + at.c + s * l.B * l.ldh; }
  T* mask(int64_t s) const { return f.scratch + at.mask + s * l.B * l.ldh; }
  T* seen(int64_t s, int64_t step) const { return f.scratch + at.seen + (2 * s + (step & 1)) * l.B * l.ldh; }
  int block_cols(int64_t panel) const { return G == 4 ? plan.lstm_cols : G * l.panels.width(panel); }
  T* ring(int64_t panel) const {
    return mine + at.ring + (l.panels.first(panel) - v0) * X * W * plan.chunk * me.rows_max;
  }

  void run() {
    pack();
    for (int64_t s = me.s0; s < me.s1; s++) {
      load_states(s);
      team.wait();
      for (int64_t from = 0; from < l.T; from += plan.chunk) {
        const int64_t to = at_most(l.T, from + plan.chunk);
        list_rows(s, from, to);
        if (l.I)
          project(s, first[to - from]);
        else
          copy_projection(s, first[to - from]);
        for (int64_t step = from; step < to; step++) {
          if (f.rows.lengths) pass_padded_rows(s, step);
          take_step(s, step, first[step - from], first[step - from + 1]);
          team.wait();
        }
      }
      store_states(s);
    }
  }

  void pack() {
    for (int64_t j = v0 * W; j < v1 * W; j++) zeros[j] = 0;  // the same zeros from every thread
    if (plan.batches == 1) {                                 // every thread packs what only it will read
      for (int64_t s = me.s0; s < me.s1; s++)
        for (int64_t p = p0; p < p1; p++) pack_panel(s, p);
    } else {
      for (int64_t i = all.me; i < l.S * l.panels.count; i += plan.threads())
        pack_panel(i / l.panels.count, i % l.panels.count);
      all.wait();
    }
  }

  void pack_panel(int64_t s, int64_t panel) const {
    const int64_t v = l.panels.first(panel);
    const int width = l.panels.width(panel), cols = block_cols(panel);
    const Weights<const T>& w = f.weights[s];
    auto pack_product = [&](T* to, const T* from, int64_t K, bool recurrent) {
      for (int j = 0; j < G * width; j++) {
        const int64_t gate = recurrent ? Slots<C>::h_gate(j % G) : Slots<C>::x_gate(j % G), row = (v + j / G) * W;
        pack_transposed(to + v * W * G * K + j / cols * cols * K * W + j % cols * W, int64_t(cols) * W,
                        from + (gate * l.H + row) * K, l.H - row, K);
      }
    };
    if (!plan.in_place) {
      if (l.I) pack_product(packed_x(s), w.ih, l.I, false);
      pack_product(packed_h(s), w.hh, l.H, true);
    }
    for (int64_t u = v; u < v + width; u++)
      for (int slot = 0; slot < X; slot++) {
        const int64_t n = l.H - u * W, of_h = slot - kFirstH;
        V bias(T(0));
        if (slot < G && w.b_ih) bias = V::load(w.b_ih + Slots<C>::x_gate(slot) * l.H + u * W, n);
        if (of_h >= 0 && w.b_hh) bias = bias + V::load(w.b_hh + Slots<C>::h_gate(int(of_h)) * l.H + u * W, n);
        bias.store(packed_bias(s) + (u * X + slot) * W);
      }
  }

  void load_states(int64_t s) const {
    for (int64_t b = me.B0; b < me.B1; b++)
      for (int64_t v = v0; v < v1; v++) {
        const int64_t from = (s * l.B + b) * l.H + v * W, to = b * l.ldh + v * W, n = l.H - v * W;
        const V h = f.h0 ? V::load(f.h0 + from, n) : V(T(0));
        h.store(state(s, 0) + to);
        if (f.rows.lengths) h.store(state(s, 1) + to);  // a row that starts late finds its state in either buffer
        if (C::kHasC) (f.c0 ? V::load(f.c0 + from, n) : V(T(0))).store(cell(s) + to);
        if (l.dropout) {
          const V factor = dropout_mask<T>(f.noise, b, s, v * W);
          factor.store(mask(s) + to);
          (h * factor).store(seen(s, 0) + to);
          if (f.rows.lengths) (h * factor).store(seen(s, 1) + to);
        }
      }
  }

  void store_states(int64_t s) const {
    for (int64_t b = me.B0; b < me.B1; b++)
      for (int64_t v = v0; v < v1; v++) {
        const int64_t to = (s * l.B + b) * l.H + v * W, from = b * l.ldh + v * W, n = l.H - v * W;
        V::load(state(s, l.T) + from).store(f.hn + to, n);
        if (C::kHasC) V::load(cell(s) + from).store(f.cn + to, n);
      }
  }

  void list_rows(int64_t s, int64_t from, int64_t to) const {
    int64_t i = 0;
    for (int64_t step = from; step < to; step++) {
      const int64_t t = l.time(s, step);
      first[step - from] = i;
      for (int64_t b = me.B0; b < me.B1; b++)
        if (f.rows.real(t, b, s)) {
          inputs[i] = l.I ? f.x + t * f.x_t + b * f.x_b : f.gates_x.at(t, b, s);
          batch[i++] = b;
        }
    }
    first[to - from] = i;
  }

  // Pre-activations = bias + x W_ih^T for the chunk's rows, own units.
  void project(int64_t s, int64_t rows) const {
    for (int64_t p = p0; p < p1; p++) {
      const int64_t v = l.panels.first(p), width = l.panels.width(p), ldc = X * W * width;
      const int cols = block_cols(p);
      const T* const bias = packed_bias(s) + v * X * W;
      T* const to = ring(p);
      if (plan.in_place) {
        for (int64_t u = 0; u < width; u++)
          for (int g = 0; g < G; g++) {
            const int64_t row = Slots<C>::x_gate(g) * l.H + (v + u) * W, slot = (u * X + g) * W;
            dots(Dots<T>{to + slot, ldc, bias + slot, 0, inputs, f.weights[s].ih + row * l.I, l.H - (v + u) * W, l.I},
                 rows);
          }
      } else {
        for (int j = 0; j < G * width; j += cols)
          gemm(cols,
               Gemm<T>{to + j * W, ldc, bias + j * W, 0, inputs, 0, 1, packed_x(s) + v * W * G * l.I + j * l.I * W,
                       cols * W, l.I},
               rows);
      }
      for (int slot = G; slot < X; slot++)
        for (int64_t i = 0; i < rows; i++) V::load(bias + slot * W).store(to + i * ldc + slot * W);
    }
  }

  void copy_projection(int64_t s, int64_t rows) const {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t p = p0; p < p1; p++) {
        const int64_t v = l.panels.first(p), width = l.panels.width(p);
        T* to = ring(p) + i * X * W * width;
        for (int64_t u = v; u < v + width; u++)
          for (int slot = 0; slot < X; slot++, to += W) {
            V a = V::load(packed_bias(s) + (u * X + slot) * W);
            if (slot < G) a = a + V::load(inputs[i] + Slots<C>::x_gate(slot) * l.H + u * W, l.H - u * W);
            a.store(to);
          }
      }
  }

  // A padded step writes zeros. At the first one after a row's end the state goes to the other buffer as well: from
  // then on both hold it.
  void pass_padded_rows(int64_t s, int64_t step) const {
    const int64_t t = l.time(s, step);
    for (int64_t b = me.B0; b < me.B1; b++) {
      if (f.rows.real(t, b, s)) continue;
      const bool ended_just_now = !l.backwards(s) && (t == 0 || f.rows.real(t - 1, b, s));
      for (int64_t v = v0; v < v1; v++) {
        const int64_t j = v * W, n = l.H - j;
        const V none(T(0));
        if (ended_just_now) V::load(state(s, step) + b * l.ldh + j).store(state(s, step + 1) + b * l.ldh + j);
        none.store(f.y.at(t, b, s) + j, n);
        if (C::kHasC && f.cs) none.store(f.cs.at(t, b, s) + j, n);
        if (f.products)
          for (int g = 0; g < G; g++) none.store(f.products.at(t, b, s) + g * l.H + j, n);
        if (f.kept && !f.kept.padded)
          for (int z = 0; z < Z; z++) none.store(f.kept.at(t, b, s) + v * f.kept.vector + z * f.kept.value, n);
      }
    }
  }

  void take_step(int64_t s, int64_t step, int64_t row0, int64_t row1) const {
    const int64_t t = l.time(s, step), rows = row1 - row0;
    for (int64_t i = 0; i < rows; i++) {
      const int64_t b = batch[row0 + i];
      const bool anew = l.cut(f.rows, t, b, s);
      h_rows[i] = anew ? zeros : state(s, step) + b * l.ldh;
      if (C::kHasC) c_rows[i] = anew ? zeros : cell(s) + b * l.ldh;
      if (l.dropout) seen_rows[i] = anew ? zeros : seen(s, step) + b * l.ldh;
    }
    if (l.normed) return take_normed_step(s, step, t, row0, rows);
    for (int64_t q = p0; q < p1; q++) {
      const int64_t p = step & 1 ? p1 - 1 - (q - p0) : q;  // there and back: what L2 just read is read first
      const int64_t ldc = X * W * l.panels.width(p);
      T* const gates = ring(p) + row0 * ldc + kFirstH * W;
      multiply(s, p, gates, ldc, gates, rows);
      step_panel(s, step, t, row0, rows, p);
    }
  }

  // to = init + what W_hh sees of the step's rows, times W_hh, for a panel's units; init: `to` itself, or null for zeros.
  void multiply(int64_t s, int64_t p, T* to, int64_t ldc, const T* init, int64_t rows) const {
    const int64_t v = l.panels.first(p), width = l.panels.width(p);
    const int cols = block_cols(p);
    if (plan.in_place) {
      for (int64_t u = 0; u < width; u++)  // more than one only where G = 1
        for (int g = 0; g < G; g++) {
          const int64_t row = Slots<C>::h_gate(g) * l.H + (v + u) * W;
          T* const out = to + (u * G + g) * W;
          dots(Dots<T>{out, ldc, init ? out : zeros, init ? ldc : 0, seen_rows, f.weights[s].hh + row * l.H,
                       l.H - (v + u) * W, l.H},
               rows);
        }
    } else {
      for (int j = 0; j < G * width; j += cols)
        gemm(cols,
             Gemm<T>{to + j * W, ldc, init ? init + j * W : nullptr, ldc, seen_rows, 0, 1,
                     packed_h(s) + v * W * G * l.H + j * l.H * W, cols * W, l.H},
             rows);
    }
  }

  void step_panel(int64_t s, int64_t step, int64_t t, int64_t row0, int64_t rows, int64_t p) const {
    const int64_t v = l.panels.first(p), width = l.panels.width(p);
    const T* const gates = ring(p) + row0 * X * W * width;
    if (f.noise.any())
      step_units<true>(s, step, t, row0, rows, v, width, gates);
    else
      step_units<false>(s, step, t, row0, rows, v, width, gates);
  }

  // norm_forward.h
  void take_normed_step(int64_t s, int64_t step, int64_t t, int64_t row0, int64_t rows) const;
  void add_normalised(int64_t s, int64_t t, int64_t b, int64_t in_chunk, const T* products) const;
  template <bool kNoise>
  void step_row(int64_t s, int64_t step, int64_t t, int64_t b, int64_t i, int64_t in_chunk) const;

  template <bool kNoise>
  void step_units(int64_t s, int64_t step, int64_t t, int64_t row0, int64_t rows, int64_t v, int64_t width,
                  const T* gates) const {
    for (int64_t u = v; u < v + width; u++)
      for (int64_t i = 0; i < rows; i++)
        step_unit<kNoise>(s, step, t, batch[row0 + i], i, u, gates + (i * width + u - v) * X * W);
  }

  // The pointwise half of one row and one vector of units.
  template <bool kNoise>
  FUSEDRNN_INLINE void step_unit(int64_t s, int64_t step, int64_t t, int64_t b, int64_t i, int64_t v,
                                 const T* gates) const {
    const int64_t j = v * W;
    V part[X], kept[Z + 1], c(T(0));
    for (int slot = 0; slot < X; slot++) part[Slots<C>::part(slot)] = V::load(gates + slot * W);
    if (C::kHasC) c = V::load(c_rows[i] + j);
    const V h_old = V::load(h_rows[i] + j), c_old = c;
    const V h = C::forward(part, h_old, c, kept);
    pass_h<kNoise>(s, step, t, b, j, h_old, h);
    if constexpr (C::kHasC) pass_c<kNoise>(s, t, b, j, c_old, c);
    keep(t, b, s, v, kept);
  }

  // The states of a step go on to the next one, and out.
  template <bool kNoise>
  FUSEDRNN_INLINE void pass_h(int64_t s, int64_t step, int64_t t, int64_t b, int64_t j, V h_old, V h) const {
    if constexpr (kNoise) {
      const V of_h = old_share<T>(f.noise, kZoneoutH, t, b, s, j);
      h = portion(of_h, h_old) + portion(V(T(1)) - of_h, h);
      if (l.dropout) (h * V::load(mask(s) + b * l.ldh + j)).store(seen(s, step + 1) + b * l.ldh + j);
    }
    h.store(state(s, step + 1) + b * l.ldh + j);
    h.store(f.y.at(t, b, s) + j, l.H - j);
  }
  template <bool kNoise>
  FUSEDRNN_INLINE void pass_c(int64_t s, int64_t t, int64_t b, int64_t j, V c_old, V c) const {
    if constexpr (kNoise) {
      const V of_c = old_share<T>(f.noise, kZoneoutC, t, b, s, j);
      c = portion(of_c, c_old) + portion(V(T(1)) - of_c, c);
    }
    c.store(cell(s) + b * l.ldh + j);
    if (f.cs) c.store(f.cs.at(t, b, s) + j, l.H - j);
  }
  FUSEDRNN_INLINE void keep(int64_t t, int64_t b, int64_t s, int64_t v, const V* kept) const {
    if (!Z || !f.kept) return;
    T* const to = f.kept.at(t, b, s) + v * f.kept.vector;
    for (int z = 0; z < Z; z++) kept[z].store(to + z * f.kept.value, f.kept.padded ? int64_t(W) : l.H - v * W);
  }
};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
