// Computes: one time step of a recurrence, or of its adjoint: the product with W_hh and the cell, in one kernel. A call
//   is T launches (backward T + 1: the last one takes the gradient of the initial state). With kNoise, of a recurrence
//   with zoneout or recurrent dropout.
// Mapping: a CTA has 16 units (backward 32) with all their gates, and up to 32 batch rows of one stream. The product
//   leaves its sums in shared memory; then a thread takes one unit of some rows through the cell.
// Memory: W_hh comes from L2 at every step. The state in full precision (h, c; backward the part of dh that went past
//   the product, dc) is in the scratch, each number read and written by one thread. The product reads what the step
//   before wrote as output: y, or the gates' gradients, in the element type. With recurrent dropout it reads `seen`, the
//   state times the mask, in place of y: two buffers, since a CTA writes the next step's while others read this one's. The
//   first is written by a launch of its own, step -1. Where a cut goes back to a state that is given, that is what the
//   product reads; its gradient is summed up in the scratch, likewise by one thread a number.
// Synchronisation: none between CTAs: what a step reads of others, an earlier launch has written.
// Requires: H a multiple of 8; Call as call.h says.
#pragma once
#include "cuda/noise.h"
#include "cuda/step_product.h"

namespace fusedrnn::cuda {
struct StepCall {
  Call call;
  void *h, *c;              // [S, B, H] in the scratch: state, or its gradient
  void *reset_h, *reset_c;  // [S, B, H] in the scratch, backward: the gradients so far of what resets go back to
  void* seen;               // [2, S, B, H] in the scratch, in the element type: what W_hh sees, with recurrent dropout
  int tile_rows;            // batch rows of a CTA, a multiple of 8
};

template <class P, class C, Pass kPass, bool kNoise>
struct Step {
  using E = Element<P>;
  using V = typename E::Value;
  using Number = typename E::Number;
  using Stored = typename E::Stored;
  using Tile = StepTile<P, C, kPass>;
  using Product = std::conditional_t<E::kTensorCores, TensorProduct<P, C, kPass>, PlainProduct<P, C, kPass>>;
  static constexpr int G = C::kGates, Z = C::kKept;
  static constexpr bool kHasQ = C::kParts > G;  // the GRU's n: input and recurrent half stay apart

  const Call& f;
  const Walk walk;
  const Tile tile;
  Number *const state_h, *const state_c, *const reset_sum_h, *const reset_sum_c;
  Stored* const seen;
  const int64_t step, t, H;

  FUSEDRNN_DEVICE Step(const StepCall& given, int64_t step_, int64_t s, int64_t b0, int64_t unit0)
      : f(given.call),
        walk{f, s},
        tile{f.problem.H, unit0, b0, int(b0 + given.tile_rows < f.problem.B ? given.tile_rows : f.problem.B - b0)},
        state_h(static_cast<Number*>(given.h)),
        state_c(static_cast<Number*>(given.c)),
        reset_sum_h(static_cast<Number*>(given.reset_h)),
        reset_sum_c(static_cast<Number*>(given.reset_c)),
        seen(static_cast<Stored*>(given.seen)),
        step(step_),
        t(walk.time(step_)),
        H(f.problem.H) {}

  FUSEDRNN_DEVICE void run() const {
    if (thread_id() < kTileRows) list_source(thread_id());
    cta_sync();
    const bool multiplies = vote_any(Tile::sources()[lane_id()] != nullptr);  // the same in every warp
    if (multiplies) Product::run(static_cast<const Stored*>(f.w) + walk.s * G * H * H, tile);
    cta_sync();
    const int64_t unit = tile.unit0 + thread_id() % Tile::kUnits;
    if (unit >= H) return;
    for (int row = thread_id() / Tile::kUnits; row < tile.rows; row += kStepThreads / Tile::kUnits) {
      if constexpr (kPass == Pass::forward) {
        if (kNoise && step < 0)
          show_next(tile.b0 + row, unit, load(f.h0, walk.edge(tile.b0 + row) * H + unit), cut_off(tile.b0 + row));
        else
          forward(row, tile.b0 + row, unit);
      } else {
        backward(row, tile.b0 + row, unit);
      }
    }
  }

  // What W_hh is multiplied with for a batch row. Forward: the state it starts from. Backward: the gates' gradients of
  // the step after, unless the row has not got that step; give_back asks whether it is cut off.
  FUSEDRNN_DEVICE void list_source(int row) const {
    const Stored *source = nullptr, *source_q = nullptr;
    const int64_t b = tile.b0 + row;
    if (row < tile.rows) {
      if constexpr (kPass == Pass::forward) {
        if (walk.real(t, b)) source = input(b);
      } else if (step + 1 < f.problem.T) {
        const int64_t after = walk.time(step + 1);
        if (walk.real(after, b)) {
          source = static_cast<const Stored*>(f.dgates_x) + walk.row(after, b) * G * H;
          if (kHasQ) source_q = static_cast<const Stored*>(f.dq) + walk.row(after, b) * H;
        }
      }
    }
    Tile::sources()[row] = source;
    Tile::sources()[kTileRows + row] = source_q;
  }

  FUSEDRNN_DEVICE bool drops() const { return f.noise.dropout > 0; }
  FUSEDRNN_DEVICE UnitNoise<E> noise(int64_t b, int64_t unit) const { return {f, walk.s, b, unit}; }
  // What W_hh sees of a row's state at the start of a step, with recurrent dropout.
  FUSEDRNN_DEVICE Stored* seen_at(int64_t at_step, int64_t b) const {
    return seen + ((at_step & 1) * f.problem.S * f.problem.B + walk.edge(b)) * H;
  }
  FUSEDRNN_DEVICE void show_next(int64_t b, int64_t unit, V h, bool cut) const {
    if (cut) h = load(f.reset_h, walk.s * H + unit);
    E::store(seen_at(step + 1, b) + unit, h * noise(b, unit).dropout_factor());
  }
  FUSEDRNN_DEVICE const Stored* input(int64_t b) const {  // of a row that has the step
    if constexpr (kNoise)
      if (drops()) return step < 0 ? nullptr : seen_at(step, b);
    return walk.before<Stored>(f.y, f.h0, f.reset_h, step, b);
  }
  // Whether the step after does not take over the row's state.
  FUSEDRNN_DEVICE bool cut_off(int64_t b) const { return step + 1 < f.problem.T && walk.cut(walk.time(step + 1), b); }

  FUSEDRNN_DEVICE Number sum(int gate, int row, int64_t unit) const {
    Number all(0);
    if (Tile::sources()[row])
      for (int split = 0; split < Tile::kSplits; split++)
        all += Tile::sums()[Tile::sum(split, gate, row, int(unit - tile.unit0))];
    return all;
  }
  static FUSEDRNN_DEVICE V load(const void* from, int64_t at) {  // zero if there is none
    return from ? V(E::load(static_cast<const Stored*>(from) + at)) : V(0);
  }
  static FUSEDRNN_DEVICE void store(void* to, int64_t at, V v) {
    if (to) E::store(static_cast<Stored*>(to) + at, v);
  }

  FUSEDRNN_DEVICE void forward(int row, int64_t b, int64_t unit) const {
    const int64_t edge = walk.edge(b) * H + unit;
    const bool real = walk.real(t, b);
    V h = step ? V(load_global(state_h + edge)) : load(f.h0, edge), c(0), kept[4] = {};
    if (C::kHasC) c = step ? V(load_global(state_c + edge)) : load(f.c0, edge);
    const int64_t at = real || !f.offsets ? walk.row(t, b) : -1;
    if (real) {
      if (walk.cut(t, b)) h = load(f.reset_h, walk.s * H + unit), c = load(f.reset_c, walk.s * H + unit);
      V a[4];
      for (int g = 0; g < G; g++) {
        const V of_x = load(f.gates_x, (at * G + g) * H + unit);
        const V of_h = V(sum(g, row, unit)) + load(f.bias, (walk.s * G + g) * H + unit);
        const bool apart = kHasQ && g == G - 1;
        a[g] = apart ? of_x : of_x + of_h;
        if (apart) a[3] = of_h;
      }
      const V h_old = h, c_old = c;
      h = C::forward(a, h, c, kept);
      if constexpr (kNoise) {
        h = mixed(noise(b, unit).old_share(kZoneoutH, t), h_old, h);
        if (C::kHasC) c = mixed(noise(b, unit).old_share(kZoneoutC, t), c_old, c);
      }
    }
    if constexpr (kNoise)
      if (drops()) show_next(b, unit, h, cut_off(b));
    if (at >= 0) {  // packed rows have no place for what is not real
      store(f.y, at * H + unit, real ? h : V(0));
      if (C::kHasC) store(f.cs, at * H + unit, real ? c : V(0));
      for (int z = 0; z < Z; z++) store(f.gates, (at * Z + z) * H + unit, kept[z]);
    }
    store_global(state_h + edge, E::number(h));
    if (C::kHasC) store_global(state_c + edge, E::number(c));
    if (step + 1 < f.problem.T) return;
    store(f.hn, edge, h);
    if (C::kHasC) store(f.cn, edge, c);
  }

  FUSEDRNN_DEVICE void backward(int row, int64_t b, int64_t unit) const {
    const int64_t edge = walk.edge(b) * H + unit;
    const bool last = step + 1 == f.problem.T;
    V through(sum(0, row, unit));
    if constexpr (kNoise)
      if (drops()) through = through * noise(b, unit).dropout_factor();
    V dh = (last ? load(f.dhn, edge) : V(load_global(state_h + edge))) + through, dc(0), da[4] = {};
    if (C::kHasC) dc = last ? load(f.dcn, edge) : V(load_global(state_c + edge));
    give_back(b, unit, dh, dc);
    if (step < 0) {
      store(f.dh0, edge, dh);
      if (C::kHasC) store(f.dc0, edge, dc);
      return;
    }
    const bool real = walk.real(t, b);
    const int64_t at = real || !f.offsets ? walk.row(t, b) : -1;
    if (real) {
      V kept[4], dkept[4], h(0), y(0), c_before(0), c(0);
      for (int z = 0; z < 4; z++) {
        kept[z] = z < Z ? load(f.gates, (at * Z + z) * H + unit) : V(0);
        dkept[z] = z < Z ? load(f.dgates, (at * Z + z) * H + unit) : V(0);
      }
      if (kHasQ) h = load(walk.before<Stored>(f.y, f.h0, f.reset_h, step, b), unit);
      if (!Z) y = load(f.y, at * H + unit);
      if (C::kHasC) {
        dc = dc + load(f.dcs, at * H + unit);
        c_before = load(walk.before<Stored>(f.cs, f.c0, f.reset_c, step, b), unit);
        c = load(f.cs, at * H + unit);
      }
      dh = dh + load(f.dy, at * H + unit);
      V h_stays(0), c_stays(0);  // what zoneout hands past the cell
      if constexpr (kNoise) {
        const V one(1), of_h = noise(b, unit).old_share(kZoneoutH, t);
        h_stays = portion(of_h, dh), dh = portion(one - of_h, dh);
        if constexpr (C::kHasC) {
          const V of_c = noise(b, unit).old_share(kZoneoutC, t);
          c_stays = portion(of_c, dc), dc = portion(one - of_c, dc);
          if (f.noise.zoneout_c > 0) c = C::own_c(kept, c_before);
        }
      }
      dh = C::backward(dh, kept, dkept, h, y, c_before, c, dc, da);
      if constexpr (kNoise) dh = dh + h_stays, dc = dc + c_stays;
    }
    if (at >= 0) {
      for (int g = 0; g < G; g++) store(f.dgates_x, (at * G + g) * H + unit, da[g]);
      if (kHasQ) store(f.dq, at * H + unit, da[3]);
    }
    store_global(state_h + edge, E::number(dh));
    if (C::kHasC) store_global(state_c + edge, E::number(dc));
  }
  // Behind a cut, what the step after hands back is not this step's: it is the gradient of what the reset went back to.
  FUSEDRNN_DEVICE void give_back(int64_t b, int64_t unit, V& dh, V& dc) const {
    const bool cut = cut_off(b);
    if (f.reset_h) {
      const int64_t edge = walk.edge(b) * H + unit;
      collect(reset_sum_h, f.dreset_h, edge, cut ? dh : V(0));
      if (C::kHasC) collect(reset_sum_c, f.dreset_c, edge, cut ? dc : V(0));
    }
    if (cut) dh = dc = V(0);
  }
  FUSEDRNN_DEVICE void collect(Number* sums, void* result, int64_t at, V more) const {
    if (step + 1 < f.problem.T) more = more + V(load_global(sums + at));
    if (step < 0)
      store(result, at, more);
    else
      store_global(sums + at, E::number(more));
  }
};

// Of a CTA: its stream, first batch row and first unit. Blocks: unit tile fastest, then batch tile, then stream.
struct StepPlace {
  int64_t s, b0, unit0;

  FUSEDRNN_DEVICE StepPlace(const StepCall& given, int units) {
    const Problem& n = given.call.problem;
    const int64_t unit_tiles = (n.H + units - 1) / units, batch_tiles = (n.B + given.tile_rows - 1) / given.tile_rows;
    const int64_t block = block_id(), tile = block / unit_tiles;
    s = tile / batch_tiles, b0 = tile % batch_tiles * given.tile_rows, unit0 = block % unit_tiles * units;
  }
};

template <class P, class C, Pass kPass, bool kNoise>
FUSEDRNN_KERNEL(kStepThreads)
time_step(const StepCall given, int64_t step) {
  const StepPlace at(given, StepTile<P, C, kPass>::kUnits);
  Step<P, C, kPass, kNoise>(given, step, at.s, at.b0, at.unit0).run();
}
}  // namespace fusedrnn::cuda
