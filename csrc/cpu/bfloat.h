// Computes: forward.h's passes in bfloat16 where nothing is kept for backward (inference), with products by AMX tiles.
//   What is multiplied is rounded to bfloat16, h among it; sums, gates and the state are float through the whole loop.
// Mapping: as in forward.h, panels of vectors of units whose pointwise half follows their product; a block of rows is one
//   tile or two. Threads split streams, rows or hidden units.
// Memory: weights are packed once a call in tiles, [panel][K / 32][vector][gate], or, for few rows, read in place. h lies
//   in tiles of rows, twice: a step reads one and fills the other. A row's place in them is its place in the batch; a tile
//   of which no row is real is left out. The state in float is read and written by its own thread only, so there is one.
//   Gates of the recurrent product lie in a buffer of one block of rows, twice, those of the input product in a ring of a
//   chunk of steps.
// Synchronisation: that of forward.h.
// Requires: nothing of H, B, I, T: K ends in zeros in both operands, columns in zeros in the weights. A row that is reset
//   in a step has zeros in h's tiles; its producer puts them there.
#pragma once
#include "cpu/barrier.h"
#include "cpu/bfloat_dots.h"
#include "cpu/bfloat_scratch.h"
#include "cpu/quick.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
template <class C>
struct BfloatForward {
  using V = Vec<float>;
  static constexpr int W = V::lanes, G = C::kGates;
  static constexpr int64_t kRowsBetween = 4;  // of the pointwise half, between two bits of the next product
  static_assert(W == kTileHeight);

  const ForwardCall<Bfloat>& f;
  const Layout<float, C> l;
  const Plan& plan;
  const Place me;
  const BfloatScratch<C> at;
  const int64_t p0, p1, v0, v1;  // own panels and vectors of units
  char* const all_of_it;
  char* const mine;
  float* const zeros;
  float* const gates;           // of two blocks
  const Bfloat** const inputs;  // rows of x, or of gates_x, of the chunk's real steps in order
  int64_t* const batch;         // their batch rows
  int64_t* const first;         // where each step's rows begin among them
  RowStep* const rows;          // those of the step at hand
  Barrier all, team;

  BfloatForward(const ForwardCall<Bfloat>& call, int thread)
      : f(call),
        l(call.problem),
        plan(call.plan),
        me(plan, l, thread),
        at(l, plan),
        p0(at.share(l, me.column, plan)),
        p1(at.share(l, me.column + 1, plan)),
        v0(l.panels.first(p0)),
        v1(l.panels.first(p1)),
        all_of_it((char*)f.scratch),
        mine(all_of_it + at.threads + thread * at.per_thread),
        zeros((float*)(all_of_it + at.zeros)),
        gates((float*)(mine + at.gates)),
        inputs((const Bfloat**)(mine + at.inputs)),
        batch((int64_t*)(mine + at.batch)),
        first((int64_t*)(mine + at.first)),
        rows((RowStep*)(mine + at.steps)),
        all{f.epochs, plan.threads(), thread},
        team{f.epochs + 1 + 8 * (thread - me.column), plan.columns, me.column} {}

  char* stream(int64_t s) const { return all_of_it + at.weights + s * at.per_stream; }
  char* packed_x(int64_t s, int64_t v) const { return stream(s) + at.packed_x + v * G * at.x_tiles * kTileBytes; }
  char* packed_h(int64_t s, int64_t v) const { return stream(s) + at.packed_h + v * G * at.h_tiles * kTileBytes; }
  float* bias_x(int64_t s, int64_t v) const { return (float*)(stream(s) + at.bias_x) + v * G * W; }
  float* bias_h(int64_t s, int64_t v) const { return (float*)(stream(s) + at.bias_h) + v * G * W; }
  float* state(int64_t s, int64_t b) const { return (float*)(all_of_it + at.state + s * at.per_state) + b * l.ldh; }
  float* cell(int64_t s, int64_t b) const { return (float*)(all_of_it + at.c + s * at.per_state) + b * l.ldh; }
  char* h_tiles(int64_t s, int64_t step) const {
    return all_of_it + at.h + ((2 * s + (step & 1)) * plan.batches + me.batch) * at.per_h;
  }
  // Where a vector of units of a batch row lies in them.
  char* h_place(int64_t s, int64_t step, int64_t b, int64_t v) const {
    const int64_t i = b - me.B0;
    return h_tiles(s, step) + (i / at.tile_rows * at.h_tiles + v / 2) * kTileBytes + i % at.tile_rows * 64 + v % 2 * 32;
  }
  float* ring(int64_t panel) const {
    const int64_t most = ceil_div(plan.chunk * me.rows_max, kTileHeight) * kTileHeight;
    return (float*)(mine + at.ring) + (l.panels.first(panel) - v0) * G * W * most;
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
          copy_projection(first[to - from]);
        configure_tiles(at.tile_rows);
        for (int64_t step = from; step < to; step++) {
          if (f.rows.lengths) pass_padded_rows(s, step);
          take_step(s, step, first[step - from], first[step - from + 1]);
          team.wait();
        }
      }
      store_states(s);
    }
    release_tiles();
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
    const int64_t v = l.panels.first(panel), cols = G * l.panels.width(panel);
    const Weights<const Bfloat>& w = f.weights[s];
    for (int64_t j = 0; j < cols; j++) {
      const int64_t unit = (v + j / G) * W, row = j % G * l.H + unit, n = l.H - unit;
      for (int64_t k = 0; k < at.x_tiles && !plan.in_place; k++)
        pack_tile(packed_x(s, v) + (k * cols + j) * kTileBytes, w.ih + row * l.I + k * kTileK, l.I, n,
                  l.I - k * kTileK);
      for (int64_t k = 0; k < at.h_tiles && !plan.in_place; k++)
        pack_tile(packed_h(s, v) + (k * cols + j) * kTileBytes, w.hh + row * l.H + k * kTileK, l.H, n,
                  l.H - k * kTileK);
      (w.b_ih ? load(w.b_ih + row, n) : V(0.f)).store(bias_x(s, v) + j * W);
      (w.b_hh ? load(w.b_hh + row, n) : V(0.f)).store(bias_h(s, v) + j * W);
    }
  }

  void load_states(int64_t s) const {
    for (int64_t b = me.B0; b < me.B1; b++) {
      const bool anew = l.cut(f.rows, l.time(s, 0), b, s);
      for (int64_t v = v0; v < v1; v++) {
        const int64_t from = (s * l.B + b) * l.H + v * W, n = l.H - v * W;
        const V h = f.h0 ? load(f.h0 + from, n) : V(0.f);
        h.store(state(s, b) + v * W);
        _mm256_store_si256((__m256i*)h_place(s, 0, b, v), rounded(anew ? V(0.f) : h));
        _mm256_store_si256((__m256i*)h_place(s, 1, b, v), rounded(h));  // a row that starts late finds it in either
        if (C::kHasC) (f.c0 ? load(f.c0 + from, n) : V(0.f)).store(cell(s, b) + v * W);
      }
      if (v1 == l.hv && l.hv % 2)  // the last tile's second half, which no vector fills
        for (int parity = 0; parity < 2; parity++)
          _mm256_store_si256((__m256i*)h_place(s, parity, b, l.hv), _mm256_setzero_si256());
    }
  }

  void store_states(int64_t s) const {
    for (int64_t b = me.B0; b < me.B1; b++)
      for (int64_t v = v0; v < v1; v++) {
        const int64_t to = (s * l.B + b) * l.H + v * W, n = l.H - v * W;
        store(rounded(V::load(state(s, b) + v * W)), f.hn + to, n);
        if (C::kHasC) store(rounded(V::load(cell(s, b) + v * W)), f.cn + to, n);
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

  // x W_ih^T + b_ih for the chunk's rows, own units.
  void project(int64_t s, int64_t n) const {
    char* const x = mine + at.x;
    for (int64_t i = 0; i < n; i++)
      for (int64_t k = 0; k < at.x_tiles; k++)
        _mm512_store_si512(x + (i / kTileHeight * at.x_tiles + k) * kTileBytes + i % kTileHeight * 64,
                           _mm512_maskz_loadu_epi16(first_values(l.I - k * kTileK), inputs[i] + k * kTileK));
    if (plan.in_place) {
      for (int64_t p = p0; p < p1; p++) dots(p, ring(p), bias_x(s, l.panels.first(p)), x, f.weights[s].ih, l.I, n);
      return;
    }
    configure_tiles(kTileHeight);
    const int64_t tiles = ceil_div(n, kTileHeight);
    for (int64_t p = p0; p < p1; p++) {
      const int64_t v = l.panels.first(p), cols = G * l.panels.width(p), ldc = cols * W;
      for (int64_t r = 0; r < tiles; r += 2)
        TileWork({ring(p) + r * kTileHeight * ldc, ldc, kTileHeight, bias_x(s, v), x + r * at.x_tiles * kTileBytes,
                  packed_x(s, v), at.x_tiles, cols},
                 at_most(2, tiles - r))
            .finish();
    }
  }

  // A panel's product with weights as they lie, for rows that fit one tile.
  void dots(int64_t panel, float* to, const float* bias, const char* a, const Bfloat* w, int64_t K, int64_t n) const {
    const int64_t v = l.panels.first(panel), cols = G * l.panels.width(panel);
    for (int64_t j = 0; j < cols; j++) {
      const int64_t unit = (v + j / G) * W, row = j % G * l.H + unit;
      bfloat_dots({to + j * W, cols * W, bias + j * W, a, w + row * K, l.H - unit, K}, n);
    }
  }

  void copy_projection(int64_t n) const {
    for (int64_t i = 0; i < n; i++)
      for (int64_t p = p0; p < p1; p++) {
        const int64_t v = l.panels.first(p), cols = G * l.panels.width(p);
        for (int64_t j = 0; j < cols; j++) {
          const int64_t unit = (v + j / G) * W;
          load(inputs[i] + j % G * l.H + unit, l.H - unit).store(ring(p) + (i * cols + j) * W);
        }
      }
  }

  void pass_padded_rows(int64_t s, int64_t step) const {
    const int64_t t = l.time(s, step);
    for (int64_t b = me.B0; b < me.B1; b++) {
      if (f.rows.real(t, b, s)) continue;
      for (int64_t v = v0; v < v1; v++) {
        store(_mm256_setzero_si256(), f.y.at(t, b, s) + v * W, l.H - v * W);
        if (C::kHasC && f.cs) store(_mm256_setzero_si256(), f.cs.at(t, b, s) + v * W, l.H - v * W);
      }
    }
  }

  struct Block {  // of a step's work: a panel's product with the rows of one tile or two, and their pointwise half
    int64_t q, panel, tile, from, to;
  };

  // The block after `b` that has rows; its q is p1 behind the last. Panels are visited there and back: what L2 read last
  // is read first.
  Block after(Block b, int64_t step, int64_t row0, int64_t row1) const {
    for (; b.q < p1; b.q++, b.tile = -2, b.to = row0) {
      while ((b.tile += 2) < at.row_tiles && b.to < row1) {
        b.from = b.to;
        const int64_t end = me.B0 + (b.tile + 2) * at.tile_rows;
        while (b.to < row1 && batch[b.to] < end) b.to++;
        b.panel = step & 1 ? p1 - 1 - (b.q - p0) : b.q;
        if (b.from < b.to) return b;
      }
    }
    return b;
  }

  TileWork product(int64_t s, int64_t step, const Block& b, float* to) const {
    const int64_t v = l.panels.first(b.panel), cols = G * l.panels.width(b.panel);
    return {{to, cols * W, at.tile_rows, bias_h(s, v), h_tiles(s, step) + b.tile * at.h_tiles * kTileBytes,
             packed_h(s, v), at.h_tiles, cols},
            at_most(2, at.row_tiles - b.tile)};
  }

  void take_step(int64_t s, int64_t step, int64_t row0, int64_t row1) const {
    const int64_t t = l.time(s, step);
    for (int64_t i = row0; i < row1; i++) {
      const int64_t b = batch[i];
      const bool anew = l.cut(f.rows, t, b, s), lives = step + 1 == l.T || !l.cut(f.rows, l.time(s, step + 1), b, s);
      float *const h = state(s, b), *const c = C::kHasC ? cell(s, b) : nullptr;
      rows[i - row0] = {anew ? zeros : h,
                        anew ? zeros : c,
                        h,
                        c,
                        f.y.at(t, b, s),
                        f.cs ? f.cs.at(t, b, s) : nullptr,
                        h_place(s, step + 1, b, 0),
                        int32_t((b - me.B0) % (2 * at.tile_rows)),
                        lives ? __mmask16(0xffff) : __mmask16(0)};
    }
    Block now = after({p0, p0, -2, row0, row0}, step, row0, row1);
    if (plan.in_place) {
      for (; now.q < p1; now = after(now, step, row0, row1)) {
        dots(now.panel, gates, bias_h(s, l.panels.first(now.panel)), h_tiles(s, step), f.weights[s].hh, l.H,
             me.B1 - me.B0);
        step_block(now, row0, gates, [](int64_t, int64_t) {});
      }
      return;
    }
    float *here = gates, *there = gates + kGatesBytes / 4;
    if (now.q < p1) product(s, step, now, here).finish();
    while (now.q < p1) {
      const Block then = after(now, step, row0, row1);
      if (then.q < p1) {
        TileWork work = product(s, step, then, there);
        step_block(now, row0, here, [&](int64_t part, int64_t whole) { work.reach(part, whole); });
        work.finish();
      } else {
        step_block(now, row0, here, [](int64_t, int64_t) {});
      }
      now = then;
      float* const other = here;
      here = there, there = other;
    }
  }

  // The pointwise half of a block; `meanwhile` is told how much of it is done.
  template <class Work>
  void step_block(const Block& b, int64_t row0, const float* of_h, const Work& meanwhile) const {
    const int64_t v = l.panels.first(b.panel), width = l.panels.width(b.panel), ldc = G * width * W, n = b.to - b.from;
    const float* const of_x = ring(b.panel) + b.from * ldc;
    const RowStep* const r = rows + (b.from - row0);
    for (int64_t u = 0; u < width; u++) {
      const __mmask16 lanes = first_lanes(l.H - (v + u) * W);
      for (int64_t i = 0; i < n;) {
        for (const int64_t end = at_most(n, i + kRowsBetween); i < end; i++)
          step_unit(r[i], v + u, lanes, of_x + i * ldc + u * G * W, of_h + r[i].of_block * ldc + u * G * W);
        meanwhile(u * n + i, width * n);
      }
    }
  }

  // The pointwise half of one row and one vector of units.
  FUSEDRNN_INLINE void step_unit(const RowStep& r, int64_t v, __mmask16 lanes, const float* of_x,
                                 const float* of_h) const {
    const int64_t j = v * W;
    Quick part[C::kParts], kept[C::kKept + 1], c(0.f);
    for (int g = 0; g < G; g++) part[g] = V::load(of_x + g * W);
    for (int g = 0; g < G; g++) {
      const V recurrent = V::load(of_h + g * W);
      if (g == G - 1 && C::kParts > G)  // the GRU's two halves of n stay apart
        part[C::kParts - 1] = recurrent;
      else
        part[g] = part[g].v + recurrent;
    }
    if (C::kHasC) c = V::load(r.c_before + j);
    const V h = C::forward(part, Quick(V::load(r.h_before + j)), c, kept).v;
    h.store(r.h + j);
    const __m256i bits = rounded(h);
    // padded lanes may hold 0 * inf: they must not meet the zeros of the weights
    _mm256_store_si256((__m256i*)(r.next + v / 2 * kTileBytes + v % 2 * 32),
                       _mm256_maskz_mov_epi16(r.lives & lanes, bits));
    _mm256_mask_storeu_epi16(r.y + j, lanes, bits);
    if (C::kHasC) {
      c.v.store(r.c + j);
      if (r.cs) _mm256_mask_storeu_epi16(r.cs + j, lanes, rounded(c.v));
    }
  }
};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
