// Computes: the adjoint of forward.h. With I > 0 down to dx, dW_ih, dW_hh and the biases' gradients; with I = 0 to the
//   gradients of the gates' pre-activations (dgates_x, dq), from which a caller takes the rest.
// Mapping: as forward; the reverse loop writes the gate gradients of a chunk of steps to a ring, and dW and dx are
//   taken from it by matrix products while it is in cache. dh_before += dgates W_hh is the serial part.
// Memory: the ring is shared by the threads of a team (same stream and rows); dW is summed per batch part and the
//   parts are added at the end in a fixed order, so results do not depend on timing. A lone part without padding is
//   summed in its own tensor. Weights are packed, or, for few steps, read in place.
// Synchronisation: one spin barrier a step between threads that share hidden units, one a chunk, and two a call
//   between all threads.
// Requires: `kept`, y and cs as forward wrote them; masked rows and noise as in forward.
// Over 400 lines: the reverse loop and the products that it feeds share the ring.
#pragma once
#include "cpu/barrier.h"
#include "cpu/noise.h"
#include "cpu/norm.h"
#include "cpu/scratch.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
constexpr int64_t kTileRows =
    24;  // rows of a product that goes through a tile on the stack: a multiple of every row block

// Rows of dW that share a pass over the inputs: whole cache lines of the ring.
constexpr int64_t kGateRows = 48;

template <class T, class C>
struct Backward {
  using V = Vec<T>;
  static constexpr int W = V::lanes, G = C::kGates, X = C::kParts, Z = C::kKept, kFirstH = Slots<C>::kFirstH;

  const BackwardCall<T>& f;
  const Layout<T, C> l;
  const Plan& plan;
  const Place me;
  const BackwardScratch<T, C> at;
  const int64_t K;               // G Hp
  const int64_t p0, p1, v0, v1;  // own column blocks and vectors of hidden units
  T* const mine;
  T* const ring;
  T* const zeros;
  T* const dx_second;        // [T, B, I]: the second direction's dx where two threads would write one row
  const T** const dgates;    // rows of the ring
  int64_t* const batch;      // of the chunk's real rows in order, as in forward: batch row,
  int64_t* const time;       //   time step,
  int64_t* const first;      //   where each step begins,
  const T** const inputs;    //   row of x,
  const T** const h_before;  //   state it started from,
  const T** const c_before;
  T** const dx_rows;
  const T** const going;  // of the step at hand: rows whose gradient goes on to the step before
  T** const going_dh;
  Barrier all, team;

  Backward(const BackwardCall<T>& call, int thread)
      : f(call),
        l(call.problem),
        plan(call.plan),
        me(plan, l, thread),
        at(l, plan, call.dx, call.dweights),
        K(G * l.Hp),
        p0(l.h_cols.share(me.column, plan.columns)),
        p1(l.h_cols.share(me.column + 1, plan.columns)),
        v0(l.h_cols.first(p0)),
        v1(l.h_cols.first(p1)),
        mine(f.scratch + at.threads + thread * at.per_thread),
        ring(f.scratch + at.teams + me.team * at.per_team),
        zeros(f.scratch + at.zeros),
        dx_second(f.dx && plan.streams == 2 ? f.scratch + at.dx_second : nullptr),
        dgates((const T**)(mine + at.dgates)),
        batch((int64_t*)(mine + at.batch)),
        time((int64_t*)(mine + at.time)),
        first((int64_t*)(mine + at.first)),
        inputs((const T**)(mine + at.inputs)),
        h_before((const T**)(mine + at.h_before)),
        c_before((const T**)(mine + at.c_before)),
        dx_rows((T**)(mine + at.dx_rows)),
        going((const T**)(mine + at.going)),
        going_dh((T**)(mine + at.going_dh)),
        all{f.epochs, plan.threads(), thread},
        team{f.epochs + 1 + 8 * (thread - me.column), plan.columns, me.column} {}

  T* packed_h(int64_t s) const { return f.scratch + at.weights + s * l.packed_backward(plan, f.dx); }
  T* packed_x(int64_t s) const { return packed_h(s) + K * l.Hp; }
  T* dh(int64_t s, int64_t b) const { return f.scratch + at.dh + (s * l.B + b) * l.ldh; }
  T* dc(int64_t s, int64_t b) const { return f.scratch + at.dc + (s * l.B + b) * l.ldh; }
  T* mask(int64_t s, int64_t b) const { return f.scratch + at.mask + (s * l.B + b) * l.ldh; }
  T* dw(int64_t part, int64_t s) const { return f.scratch + at.dw + (part * l.S + s) * K * at.dw_row; }
  T* db(int64_t s) const { return mine + at.db + s * 2 * X * l.Hp; }  // sums, and what their roundings lost

  void run() {
    prepare();
    for (int64_t s = me.s0; s < me.s1; s++) {
      load_gradients(s);
      for (int64_t to = l.T; to > 0; to -= plan.chunk) {
        const int64_t from = at_least(0, to - plan.chunk);
        list_rows(s, from, to);
        for (int64_t step = to - 1; step >= from; step--) {
          const int64_t row0 = first[step - from], row1 = first[step - from + 1];
          if (f.rows.lengths && f.dgates_x) clear_padded_rows(s, step);
          if (f.noise.any())
            step_gates<true>(s, step, row0, row1);
          else
            step_gates<false>(s, step, row0, row1);
          team.wait();
          step_back(s, step, row0, row1);
        }
        if (f.dweights) add_weight_gradients(s, from, to);
        if (f.dx) input_gradients(s, first[to - from]);
        team.wait();  // the ring is about to be overwritten
      }
      store_gradients(s);
    }
    all.wait();
    if (f.dweights) sum_weight_gradients();
    if (dx_second) sum_input_gradients();
  }

  void prepare() {
    for (int64_t j = v0 * W; j < v1 * W; j++) zeros[j] = 0;  // the same zeros from every thread
    if (f.dweights)
      for (int64_t i = 0; i < l.S * 2 * X * l.Hp; i++) mine[at.db + i] = 0;
    if (!plan.in_place) pack();
    if (f.dx && f.rows.lengths)  // padded rows are in no list
      for (int64_t i = all.me; i < l.T * l.B; i += plan.threads())
        for (int64_t j = 0; j < l.I; j++) {
          f.dx[i / l.B * f.dx_t + i % l.B * f.dx_b + j] = 0;
          if (dx_second) dx_second[i * l.I + j] = 0;
        }
    all.wait();
    for (int64_t i = 0; i < plan.chunk * me.rows_max; i++) dgates[i] = ring + i * l.ldg;
  }

  void pack() const {
    const int64_t of_h = l.T > 1 || f.dh0 ? l.h_cols.count : 0, blocks = of_h + (f.dx ? l.x_cols.count : 0);
    for (int64_t i = all.me; i < l.S * blocks; i += plan.threads()) {
      const int64_t s = i / blocks, p = i % blocks;
      if (p < of_h)
        pack_columns(packed_h(s), f.weights[s].hh, true, l.H, l.h_cols, p);
      else
        pack_columns(packed_x(s), f.weights[s].ih, false, l.I, l.x_cols, p - of_h);
    }
  }

  // Rows of W[gate H + j, N], gates in slot order, padded to [G Hp][width][lanes]: one column block of the product
  // dgates W.
  void pack_columns(T* to, const T* w, bool recurrent, int64_t N, const Groups& groups, int64_t p) const {
    to += K * W * groups.first(p);
    for (int g = 0; g < G; g++) {
      const int64_t gate = recurrent ? Slots<C>::h_gate(g) : Slots<C>::x_gate(g);
      for (int64_t j = 0; j < l.Hp; j++)
        for (int64_t v = groups.first(p); v < groups.first(p + 1); v++, to += W)
          (j < l.H ? V::load(w + (gate * l.H + j) * N + v * W, N - v * W) : V(T(0))).store(to);
    }
  }

  void load_gradients(int64_t s) const {
    for (int64_t b = me.B0; b < me.B1; b++)
      for (int64_t v = v0; v < v1; v++) {
        const int64_t from = (s * l.B + b) * l.H + v * W, n = l.H - v * W;
        (f.dhn ? V::load(f.dhn + from, n) : V(T(0))).store(dh(s, b) + v * W);
        if (C::kHasC) (f.dcn ? V::load(f.dcn + from, n) : V(T(0))).store(dc(s, b) + v * W);
        if (l.dropout) dropout_mask<T>(f.noise, b, s, v * W).store(mask(s, b) + v * W);
      }
  }

  void store_gradients(int64_t s) const {
    if (!f.dh0) return;
    for (int64_t b = me.B0; b < me.B1; b++)
      for (int64_t v = v0; v < v1; v++) {
        const int64_t to = (s * l.B + b) * l.H + v * W, n = l.H - v * W;
        V::load(dh(s, b) + v * W).store(f.dh0 + to, n);
        if (C::kHasC) V::load(dc(s, b) + v * W).store(f.dc0 + to, n);
      }
  }

  void list_rows(int64_t s, int64_t from, int64_t to) const {
    int64_t i = 0;
    for (int64_t step = from; step < to; step++) {
      const int64_t t = l.time(s, step), t_before = l.time(s, step - 1);
      first[step - from] = i;
      for (int64_t b = me.B0; b < me.B1; b++) {
        if (!f.rows.real(t, b, s)) continue;
        const bool cut = l.cut(f.rows, t, b, s), starts = l.starts(f.rows, t, b, s);
        const int64_t edge = (s * l.B + b) * l.H;
        h_before[i] = cut ? zeros : !starts ? f.y.at(t_before, b, s) : f.h0 ? f.h0 + edge : zeros;
        if (C::kHasC) c_before[i] = cut ? zeros : !starts ? f.cs.at(t_before, b, s) : f.c0 ? f.c0 + edge : zeros;
        if (l.I) inputs[i] = f.x + t * f.x_t + b * f.x_b;
        time[i] = t;
        batch[i++] = b;
      }
    }
    first[to - from] = i;
  }

  void clear_padded_rows(int64_t s, int64_t step) const {
    const int64_t t = l.time(s, step);
    for (int64_t b = me.B0; b < me.B1; b++) {
      if (f.rows.real(t, b, s)) continue;
      for (int64_t v = v0; v < v1; v++) {
        const V none(T(0));
        for (int g = 0; g < G; g++) none.store(f.dgates_x.at(t, b, s) + g * l.H + v * W, l.H - v * W);
        if (f.dq) none.store(f.dq.at(t, b, s) + v * W, l.H - v * W);
        if (l.normed)
          for (int g = 0; g < G; g++) none.store(f.dproducts.at(t, b, s) + g * l.H + v * W, l.H - v * W);
      }
    }
  }

  template <bool kNoise>
  void step_gates(int64_t s, int64_t step, int64_t row0, int64_t row1) const {
    if (!l.normed) return pointwise<kNoise, false>(s, step, row0, row1);
    if constexpr (C::kHasC) back_to_c<kNoise>(s, step, row0, row1);
    pointwise<kNoise, true>(s, step, row0, row1);
    back_to_product(s, step, row0, row1);
  }
  // norm_backward.h
  template <bool kNoise>
  void back_to_c(int64_t s, int64_t step, int64_t row0, int64_t row1) const;
  void back_to_product(int64_t s, int64_t step, int64_t row0, int64_t row1) const;

  // Zeros in the padding: there forward may hold 0 * inf, which would reach every unit by way of dh.
  FUSEDRNN_INLINE void load_kept(int64_t t, int64_t b, int64_t s, int64_t v, V* kept) const {
    for (int z = 0; z < Z; z++)
      kept[z] = V::load(f.kept.at(t, b, s) + v * f.kept.vector + z * f.kept.value, l.H - v * W);
  }

  // The pointwise half of a step: from dh (and dy) to the gates' gradients, the biases', and what of dh goes straight
  // to the state before.
  template <bool kNoise, bool kNormed>
  void pointwise(int64_t s, int64_t step, int64_t row0, int64_t row1) const {
    const int64_t t = l.time(s, step);
    for (int64_t v = v0; v < v1; v++) {
      const int64_t j = v * W, n = l.H - j;
      V sum[X];
      for (int slot = 0; slot < X; slot++) sum[slot] = V(T(0));
      for (int64_t i = row0; i < row1; i++) {
        const int64_t b = batch[i];
        V kept[Z + 1], dkept[4], part[X], g = V::load(dh(s, b) + j), h(T(0)), y(T(0)), c_old(T(0)), c(T(0)),
                                          dcell(T(0));
        load_kept(t, b, s, v, kept);
        for (int z = 0; z < 4; z++)
          dkept[z] =
              z < Z && f.dkept ? V::load(f.dkept.at(t, b, s) + v * f.dkept.vector + z * f.dkept.value, n) : V(T(0));
        if (f.dy) g = g + V::load(f.dy.at(t, b, s) + j, n);
        if (X > G) h = V::load(h_before[i] + j, n);
        if (!Z) y = V::load(f.y.at(t, b, s) + j, n);
        if (C::kHasC) {
          dcell = V::load(dc(s, b) + j);
          if (f.dcs) dcell = dcell + V::load(f.dcs.at(t, b, s) + j, n);
          c_old = V::load(c_before[i] + j, n);
          c = V::load(f.cs.at(t, b, s) + j, n);
        }
        V h_stays(T(0)), c_stays(T(0));  // what zoneout hands past the cell
        if constexpr (kNoise) {
          const V one(T(1)), of_h = old_share<T>(f.noise, kZoneoutH, t, b, s, j);
          h_stays = portion(of_h, g), g = portion(one - of_h, g);
          if constexpr (C::kHasC) {
            const V of_c = old_share<T>(f.noise, kZoneoutC, t, b, s, j);
            c_stays = portion(of_c, dcell), dcell = portion(one - of_c, dcell);
            if (f.noise.zoneout_c > 0) c = C::own_c(kept, c_old);
          }
        }
        V rest(T(0));
        if constexpr (kNormed && C::kHasC) {
          const T* const of_c = ring + i * l.ldg + j;  // what back_to_c left there
          dcell = dcell + V::load(of_c + l.Hp);
          C::backward_from_c(g, kept, dkept, c_old, V::load(of_c), dcell, part);
        } else {
          rest = C::backward(g, kept, dkept, h, y, c_old, c, dcell, part);
        }
        if constexpr (kNoise) rest = rest + h_stays, dcell = dcell + c_stays;
        const bool cut = f.rows.reset && l.cut(f.rows, t, b, s);
        (cut ? V(T(0)) : rest).store(dh(s, b) + j);
        if (C::kHasC) (cut ? V(T(0)) : dcell).store(dc(s, b) + j);
        for (int slot = 0; slot < X; slot++) {
          const V d = part[Slots<C>::part(slot)];
          d.store(ring + i * l.ldg + slot * l.Hp + j);
          sum[slot] = sum[slot] + d;
        }
        if (f.dgates_x) {
          for (int g_ = 0; g_ < G; g_++) part[g_].store(f.dgates_x.at(t, b, s) + g_ * l.H + j, n);
          if (X > G) part[G].store(f.dq.at(t, b, s) + j, n);
        }
      }
      if (f.dweights)
        for (int slot = 0; slot < X; slot++) {
          T* const to = db(s) + slot * l.Hp + j;
          T* const lost = to + X * l.Hp;
          const V before = V::load(to), more = sum[slot] - V::load(lost), after = before + more;
          // Kahan's sum: there may be very many steps, or an infinite one
          zero_if_nan((after - before) - more).store(lost);
          after.store(to);
        }
    }
  }

  // dh_before += dgates W_hh, own units.
  void step_back(int64_t s, int64_t step, int64_t row0, int64_t row1) const {
    if (step == 0 && !f.dh0) return;
    const bool row_by_row = f.rows.masked() || l.dropout;
    int64_t n = row1 - row0;
    if (row_by_row) {
      const int64_t t = l.time(s, step);
      n = 0;
      for (int64_t i = row0; i < row1; i++)
        if (!l.cut(f.rows, t, batch[i], s)) {
          going[n] = dgates[i];
          going_dh[n++] = dh(s, batch[i]);
        }
    }
    for (int64_t q = p0; q < p1; q++) {
      const int64_t p = step & 1 ? p1 - 1 - (q - p0) : q, v = l.h_cols.first(p);
      const int width = l.h_cols.width(p);
      // in place: the gates of W_hh lie in the order of the slots, and H has no padding
      const T* const w = plan.in_place ? f.weights[s].hh + v * W : packed_h(s) + K * W * v;
      const int64_t ldb = plan.in_place ? l.H : int64_t(width) * W;
      if (!row_by_row) {
        T* const out = dh(s, me.B0) + v * W;
        gemm(width, Gemm<T>{out, l.ldh, out, l.ldh, dgates + row0, kFirstH * l.Hp, 1, w, ldb, K}, n);
        continue;
      }
      for (int64_t r = 0; r < n; r += kTileRows) {
        const int64_t rows = at_most(kTileRows, n - r);
        T tile[kTileRows * kMaxPanel * W];
        gemm(width, Gemm<T>{tile, int64_t(width) * W, nullptr, 0, going + r, kFirstH * l.Hp, 1, w, ldb, K}, rows);
        for (int64_t i = 0; i < rows; i++)
          for (int u = 0; u < width; u++) {
            T* const to = going_dh[r + i] + (v + u) * W;
            V more = V::load(tile + (i * width + u) * W);
            if (l.dropout) more = more * V::load(to + (at.mask - at.dh));  // they lie alike
            (V::load(to) + more).store(to);
          }
      }
    }
  }

  // dW += dgates^T [x | h_before] of the chunk, own gate rows.
  void add_weight_gradients(int64_t s, int64_t from, int64_t to) const {
    const int64_t rows = first[to - from];
    const bool begins = to == l.T;
    T* const x_operand = mine + at.operands;
    T* const h_operand = x_operand + rows * l.Ip;
    pack_operand(x_operand, inputs, l.x_cols, l.I, rows);
    pack_operand(h_operand, h_before, l.h_cols, l.H, rows);
    T* const out = dw(me.batch, s);
    for (int g = 0; g < G; g++)
      for (int64_t m = v0 * W; m < v1 * W; m += kGateRows) {
        const int64_t n = at_most(kGateRows, v1 * W - m);
        const T* gate[kGateRows];
        for (int i = 0; i < n; i++) gate[i] = ring + g * l.Hp + m + i;
        auto product = [&](const Groups& groups, const T* operand, int64_t shift, T* c, int64_t ldc) {
          for (int64_t p = 0; p < groups.count; p++) {
            T* const c_p = c + groups.first(p) * W;
            gemm(groups.width(p),
                 Gemm<T>{c_p, ldc, begins ? nullptr : c_p, ldc, gate, shift, l.ldg,
                         operand + rows * groups.first(p) * W, groups.width(p) * W, rows},
                 n);
          }
        };
        T* const row = out + (g * l.Hp + m) * at.dw_row;
        if (at.x_last)
          product(l.x_cols, x_operand, 0, f.dweights[s].ih + (Slots<C>::x_gate(g) * l.H + m) * l.I, l.I);
        else
          product(l.x_cols, x_operand, 0, row, at.dw_row);
        if (at.h_last)
          product(l.h_cols, h_operand, kFirstH * l.Hp, f.dweights[s].hh + (Slots<C>::h_gate(g) * l.H + m) * l.H, l.H);
        else
          product(l.h_cols, h_operand, kFirstH * l.Hp, row + l.Ip, at.dw_row);
      }
  }

  static void pack_operand(T* to, const T* const* rows, const Groups& groups, int64_t N, int64_t count) {
    for (int64_t p = 0; p < groups.count; p++)
      for (int64_t i = 0; i < count; i++)
        for (int64_t v = groups.first(p); v < groups.first(p + 1); v++, to += W)
          V::load(rows[i] + v * W, N - v * W).store(to);
  }

  // dx = dgates W_ih of the chunk, own share of its rows; the second direction adds to the first, or writes apart where
  // they run at once.
  void input_gradients(int64_t s, int64_t rows) const {
    const int64_t r0 = rows * me.column / plan.columns, r1 = rows * (me.column + 1) / plan.columns;
    const bool apart = dx_second && s == 1, add = s > 0 && !apart;
    for (int64_t i = r0; i < r1; i++)
      dx_rows[i] = apart ? dx_second + (time[i] * l.B + batch[i]) * l.I : f.dx + time[i] * f.dx_t + batch[i] * f.dx_b;
    for (int64_t p = 0; p < l.x_cols.count; p++) {
      const int64_t v = l.x_cols.first(p);
      const int width = l.x_cols.width(p);
      const int64_t ldt = int64_t(width) * W, ldb = plan.in_place ? l.I : ldt;
      for (int64_t r = r0; r < r1; r += kTileRows) {
        const int64_t n = at_most(kTileRows, r1 - r);
        T tile[kTileRows * kMaxPanel * W];
        for (int g = 0; g < G; g++) {  // gate by gate: in place they are in another order, and short sums round less
          const T* const w = plan.in_place ? f.weights[s].ih + Slots<C>::x_gate(g) * l.H * l.I + v * W
                                           : packed_x(s) + (K * v + g * l.Hp * width) * W;
          gemm(width, Gemm<T>{tile, ldt, g ? tile : nullptr, ldt, dgates + r, g * l.Hp, 1, w, ldb, l.Hp}, n);
        }
        for (int64_t i = 0; i < n; i++)
          for (int u = 0; u < width; u++) {
            T* const to = dx_rows[r + i] + (v + u) * W;
            const int64_t valid = l.I - (v + u) * W;
            const V value = V::load(tile + (i * width + u) * W);
            (add ? value + V::load(to, valid) : value).store(to, valid);
          }
      }
    }
  }

  // Adds the batch parts and, for the biases, the threads, in a fixed order.
  void sum_weight_gradients() const {
    for (int64_t i = all.me; i < l.S * G * l.H; i += plan.threads()) {
      const int64_t s = i / (G * l.H), j = i % l.H;
      const int g = int(i / l.H % G);
      const Weights<T>& to = f.dweights[s];
      const int64_t x_row = Slots<C>::x_gate(g) * l.H + j, h_row = Slots<C>::h_gate(g) * l.H + j;
      auto sum = [&](int64_t column, int64_t N, T* row) {
        for (int64_t n = 0; n < N; n += W) {
          V total(T(0));
          for (int part = 0; part < plan.batches; part++)
            total = total + V::load(dw(part, s) + (g * l.Hp + j) * at.dw_row + column + n);
          total.store(row + n, N - n);
        }
      };
      if (!at.x_last) sum(0, l.I, to.ih + x_row * l.I);
      if (!at.h_last) sum(l.Ip, l.H, to.hh + h_row * l.H);
      if (!to.b_ih) continue;
      T b_x = 0, b_h = 0;
      for (int t = 0; t < plan.threads(); t++) {
        const T* const part = f.scratch + at.threads + t * at.per_thread + at.db + s * 2 * X * l.Hp + j;
        b_x += part[g * l.Hp];
        b_h += part[(kFirstH + g) * l.Hp];
      }
      to.b_ih[x_row] = b_x;
      to.b_hh[h_row] = b_h;
    }
  }

  void sum_input_gradients() const {
    for (int64_t i = all.me; i < l.T * l.B; i += plan.threads()) {
      T* const to = f.dx + i / l.B * f.dx_t + i % l.B * f.dx_b;
      for (int64_t j = 0; j < l.I; j += W)
        (V::load(to + j, l.I - j) + V::load(dx_second + i * l.I + j, l.I - j)).store(to + j, l.I - j);
    }
  }
};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
