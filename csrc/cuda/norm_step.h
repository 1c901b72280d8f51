// Computes: one time step of a recurrence with layer normalisation, or of its adjoint, in two kernels: the product with
//   W_hh; then what is normalised, and the cell. Means and variances are those of one row, taken in two passes, and anew
//   in backward.
// Mapping: of the product, as in step.h. Then a CTA is a batch row of a stream: a thread has every kRowThreads-th unit,
//   with all its gates.
// Memory: the product's sums pass through the scratch in full precision. What a later pass over the units needs of an
//   earlier one lies in the sums' place: a number there is read and written by the one thread that has the unit.
// Synchronisation: a CTA barrier in each addition over the row. Every addition has shared memory of its own, so that
//   nobody waits for its readers; the order of its terms is fixed.
// Requires: H a multiple of 8, no packed rows, no dgates; Call as call.h says.
// Source: Ba, Kiros and Hinton 2016, "Layer normalization"; docs/maths.md has the variant.
#pragma once
#include <math.h>

#include "cuda/step.h"

namespace fusedrnn::cuda {
struct NormStepCall {
  StepCall step;
  NormTensors norms;
  void* sums;  // [S, B, G H] in the scratch, in full precision; of backward's product, [S, B, 1, H] of it
};

constexpr int kRowWarps = 8, kRowThreads = 32 * kRowWarps;
constexpr int kRowAdditions = 8;  // of one kernel, at most
constexpr double kNormEps = 1e-5;

FUSEDRNN_DEVICE float inverse_root(float x) { return 1 / ::sqrtf(x); }
FUSEDRNN_DEVICE double inverse_root(double x) { return 1 / ::sqrt(x); }

// Adds up numbers of all threads of a CTA, kN at a time. `first`: of the additions that the kernel has made so far.
template <class Number, int kN>
FUSEDRNN_DEVICE void add_up(Number (&x)[kN], int first) {
  Number* const of_warps = reinterpret_cast<Number*>(smem_base()) + first * kRowWarps;
  for (int n = 0; n < kN; n++)
    for (int lanes = 16; lanes > 0; lanes /= 2) x[n] += lane_xor(x[n], lanes);
  if (lane_id() == 0)
    for (int n = 0; n < kN; n++) of_warps[n * kRowWarps + warp_id()] = x[n];
  cta_sync();
  for (int n = 0; n < kN; n++) {
    x[n] = 0;
    for (int warp = 0; warp < kRowWarps; warp++) x[n] += of_warps[n * kRowWarps + warp];
  }
}

// Mean and 1 / standard deviation of kN vectors.
template <class Number, int kN>
struct Moments {
  Number mean[kN], factor[kN];

  FUSEDRNN_DEVICE Number standardised(int n, Number x) const { return (x - mean[n]) * factor[n]; }
};
// Each: calls its argument with n and x for every number x of vector n that the thread has. Makes 2 kN additions.
template <class Number, int kN, class Each>
FUSEDRNN_DEVICE Moments<Number, kN> moments(const Number (&sizes)[kN], int first, Each each) {
  Moments<Number, kN> of;
  Number sums[kN] = {}, squares[kN] = {};
  each([&](int n, Number x) { sums[n] += x; });
  add_up(sums, first);
  for (int n = 0; n < kN; n++) of.mean[n] = sums[n] / sizes[n];
  each([&](int n, Number x) { squares[n] += (x - of.mean[n]) * (x - of.mean[n]); });
  add_up(squares, first + kN);
  for (int n = 0; n < kN; n++) of.factor[n] = inverse_root(squares[n] / sizes[n] + static_cast<Number>(kNormEps));
  return of;
}

template <class P, class C, Pass kPass>
struct NormStep : Step<P, C, kPass, true> {
  using Base = Step<P, C, kPass, true>;
  using Base::f, Base::walk, Base::tile, Base::state_h, Base::state_c, Base::step, Base::t, Base::H;
  using Base::G, Base::Z, Base::kHasQ, Base::load, Base::store, Base::drops, Base::noise;
  using typename Base::E;
  using typename Base::Number;
  using typename Base::Stored;
  using typename Base::Tile;
  using typename Base::V;
  static constexpr int kProductNorms = kHasQ ? 2 : 1;  // vectors that the product is normalised in: the GRU's n apart
  static constexpr bool kForward = kPass == Pass::forward;

  const NormTensors& norms;
  Number* const scratch;

  FUSEDRNN_DEVICE NormStep(const NormStepCall& given, int64_t step_, int64_t s, int64_t b0, int64_t unit0)
      : Base(given.step, step_, s, b0, unit0), norms(given.norms), scratch(static_cast<Number*>(given.sums)) {}

  // The product of a tile. Its first lines are those of Step::run: a function of both changes the code that nvcc makes
  // of layers without layer normalisation.
  FUSEDRNN_DEVICE void product() const {
    if (thread_id() < kTileRows) kForward ? Base::list_source(thread_id()) : list_dproducts(thread_id());
    cta_sync();
    const bool multiplies = vote_any(Tile::sources()[lane_id()] != nullptr);  // the same in every warp
    if (multiplies) Base::Product::run(static_cast<const Stored*>(f.w) + walk.s * G * H * H, tile);
    cta_sync();
    const int64_t unit = tile.unit0 + thread_id() % Tile::kUnits;
    if (unit >= H) return;
    for (int row = thread_id() / Tile::kUnits; row < tile.rows; row += kStepThreads / Tile::kUnits)
      for (int gate = 0; gate < Tile::kSums; gate++)
        store_global(sum_of(tile.b0 + row, gate) + unit, Base::sum(gate, row, unit));
  }
  FUSEDRNN_DEVICE void list_dproducts(int row) const {
    const Stored *source = nullptr, *source_q = nullptr;
    const int64_t b = tile.b0 + row;
    if (row < tile.rows && step + 1 < f.problem.T) {
      const int64_t after = walk.time(step + 1);
      if (walk.real(after, b)) {
        source = static_cast<const Stored*>(norms.dproducts) + walk.row(after, b) * G * H;
        source_q = source + (G - 1) * H;
      }
    }
    Tile::sources()[row] = source;
    Tile::sources()[kTileRows + row] = source_q;
  }

  FUSEDRNN_DEVICE Number* sum_of(int64_t b, int gate) const { return scratch + (walk.edge(b) * G + gate) * H; }
  static FUSEDRNN_DEVICE Number number(const void* from, int64_t at) {
    return E::load(static_cast<const Stored*>(from) + at);
  }
  static FUSEDRNN_DEVICE int norm_of(int gate) { return kHasQ && gate == G - 1 ? 1 : 0; }
  FUSEDRNN_DEVICE Number size_of(int norm) const {
    return static_cast<Number>((!kHasQ ? G : norm == 1 ? 1 : G - 1) * H);
  }
  FUSEDRNN_DEVICE V gain(int gate, int64_t unit) const { return load(norms.gain, (walk.s * G + gate) * H + unit); }
  // What the output's tanh takes, of a standardised c.
  FUSEDRNN_DEVICE V scaled_c(Number c, int64_t unit) const {
    return V(c) * load(norms.gain_c, walk.s * H + unit) + load(norms.shift_c, walk.s * H + unit);
  }
  template <class Run>
  FUSEDRNN_DEVICE void each_unit(Run run) const {
    for (int64_t unit = thread_id(); unit < H; unit += kRowThreads) run(unit);
  }

  FUSEDRNN_DEVICE bool zones_out() const { return f.noise.zoneout_h + f.noise.zoneout_c > 0; }

  // Normalisation and cell of a row.
  FUSEDRNN_DEVICE void forward_row(int64_t b) const {
    const int64_t edge = walk.edge(b) * H, at = walk.row(t, b);
    const bool cut_next = Base::cut_off(b);
    if (step < 0) return each_unit([&](int64_t unit) { Base::show_next(b, unit, load(f.h0, edge + unit), cut_next); });
    if (!walk.real(t, b)) {
      return each_unit([&](int64_t unit) {
        for (int g = 0; g < G; g++) store(norms.products, (at * G + g) * H + unit, V(0));
        for (int z = 0; z < Z; z++) store(f.gates, (at * Z + z) * H + unit, V(0));
        store(f.y, at * H + unit, V(0));
        if (C::kHasC) store(f.cs, at * H + unit, V(0));
        hand_on(b, unit, started_h(b, unit, false), started_c(b, unit, false), cut_next);
      });
    }
    const bool cut = walk.cut(t, b);
    if (cut) {
      each_unit([&](int64_t unit) {
        store_global(state_h + edge + unit, E::number(load(f.reset_h, walk.s * H + unit)));
        if (C::kHasC) store_global(state_c + edge + unit, E::number(load(f.reset_c, walk.s * H + unit)));
      });
    }
    Number sizes[kProductNorms];
    for (int n = 0; n < kProductNorms; n++) sizes[n] = size_of(n);
    const Moments<Number, kProductNorms> of_product = moments(sizes, 0, [&](auto take) {
      each_unit([&](int64_t unit) {
        for (int g = 0; g < G; g++) take(norm_of(g), load_global(sum_of(b, g) + unit));
      });
    });
    each_unit([&](int64_t unit) {
      V h = started_h(b, unit, cut), c = started_c(b, unit, cut), a[4] = {}, kept[4] = {};
      for (int g = 0; g < G; g++) {
        const Number product = load_global(sum_of(b, g) + unit);
        store(norms.products, (at * G + g) * H + unit, V(product));
        const V of_x = load(f.gates_x, (at * G + g) * H + unit);
        const V of_h =
            V(of_product.standardised(norm_of(g), product)) * gain(g, unit) + load(f.bias, (walk.s * G + g) * H + unit);
        a[g] = norm_of(g) == 1 ? of_x : of_x + of_h;
        if (norm_of(g) == 1) a[3] = of_h;
      }
      if constexpr (C::kHasC) {  // h waits for the whole row's c
        c = C::next_c(a, c, kept);
        store_global(sum_of(b, 0) + unit, E::number(c));
        store_global(sum_of(b, 1) + unit, E::number(kept[3]));
      } else {
        h = C::forward(a, h, c, kept);
        finish(b, unit, cut, h, c, cut_next);
      }
      for (int z = 0; z < Z; z++) store(f.gates, (at * Z + z) * H + unit, kept[z]);
    });
    if constexpr (C::kHasC) {
      const Number units[1] = {static_cast<Number>(H)};
      const Moments<Number, 1> of_c = moments(units, 2 * kProductNorms, [&](auto take) {
        each_unit([&](int64_t unit) { take(0, load_global(sum_of(b, 0) + unit)); });
      });
      each_unit([&](int64_t unit) {
        const Number c = load_global(sum_of(b, 0) + unit);
        const V o(load_global(sum_of(b, 1) + unit));
        finish(b, unit, cut, o * hyperbolic_tangent(scaled_c(of_c.standardised(0, c), unit)), V(c), cut_next);
      });
    }
  }
  // The state that a step starts from; behind a cut, once it has been put there.
  FUSEDRNN_DEVICE V started_h(int64_t b, int64_t unit, bool cut) const {
    const int64_t edge = walk.edge(b) * H + unit;
    return step || cut ? V(load_global(state_h + edge)) : load(f.h0, edge);
  }
  FUSEDRNN_DEVICE V started_c(int64_t b, int64_t unit, bool cut) const {
    const int64_t edge = walk.edge(b) * H + unit;
    if constexpr (!C::kHasC) return V(0);
    return step || cut ? V(load_global(state_c + edge)) : load(f.c0, edge);
  }
  // Zoneout and outputs, of what the cell makes of a unit.
  FUSEDRNN_DEVICE void finish(int64_t b, int64_t unit, bool cut, V h, V c, bool cut_next) const {
    if (zones_out()) {
      h = mixed(noise(b, unit).old_share(kZoneoutH, t), started_h(b, unit, cut), h);
      if (C::kHasC) c = mixed(noise(b, unit).old_share(kZoneoutC, t), started_c(b, unit, cut), c);
    }
    store(f.y, walk.row(t, b) * H + unit, h);
    if (C::kHasC) store(f.cs, walk.row(t, b) * H + unit, c);
    hand_on(b, unit, h, c, cut_next);
  }
  FUSEDRNN_DEVICE void hand_on(int64_t b, int64_t unit, V h, V c, bool cut_next) const {
    const int64_t edge = walk.edge(b) * H + unit;
    if (drops()) Base::show_next(b, unit, h, cut_next);
    store_global(state_h + edge, E::number(h));
    if (C::kHasC) store_global(state_c + edge, E::number(c));
    if (step + 1 < f.problem.T) return;
    store(f.hn, edge, h);
    if (C::kHasC) store(f.cn, edge, c);
  }

  // Gradients of the states that a step ends with.
  struct Upstream {
    V h, c;
    V h_stays, c_stays;  // what zoneout hands past the cell
  };
  FUSEDRNN_DEVICE Upstream arriving(int64_t b, int64_t unit) const {
    const int64_t edge = walk.edge(b) * H + unit;
    const bool last = step + 1 == f.problem.T;
    V through(load_global(sum_of(b, 0) + unit)), c(0);
    if (drops()) through = through * noise(b, unit).dropout_factor();
    const V h = (last ? load(f.dhn, edge) : V(load_global(state_h + edge))) + through;
    if constexpr (C::kHasC) c = last ? load(f.dcn, edge) : V(load_global(state_c + edge));
    return {h, c, V(0), V(0)};
  }
  // The same of a step that the row has, with those of its outputs.
  FUSEDRNN_DEVICE Upstream upstream(int64_t b, int64_t unit) const {
    const int64_t at = walk.row(t, b) * H + unit;
    Upstream d = arriving(b, unit);
    d.h = d.h + load(f.dy, at);
    if constexpr (C::kHasC) d.c = d.c + load(f.dcs, at);
    if (zones_out()) {
      const V one(1), of_h = noise(b, unit).old_share(kZoneoutH, t);
      d.h_stays = portion(of_h, d.h), d.h = portion(one - of_h, d.h);
      if constexpr (C::kHasC) {
        const V of_c = noise(b, unit).old_share(kZoneoutC, t);
        d.c_stays = portion(of_c, d.c), d.c = portion(one - of_c, d.c);
      }
    }
    return d;
  }

  FUSEDRNN_DEVICE void backward_row(int64_t b) const {
    const int64_t edge = walk.edge(b) * H, at = walk.row(t, b);
    if (f.reset_h || Base::cut_off(b)) {
      each_unit([&](int64_t unit) {
        Upstream d = arriving(b, unit);
        Base::give_back(b, unit, d.h, d.c);
        store_global(sum_of(b, 0) + unit, Number(0));
        store_global(state_h + edge + unit, E::number(d.h));
        if (C::kHasC) store_global(state_c + edge + unit, E::number(d.c));
      });
    }
    if (step < 0) {
      return each_unit([&](int64_t unit) {
        const Upstream d = arriving(b, unit);
        store(f.dh0, edge + unit, d.h);
        if (C::kHasC) store(f.dc0, edge + unit, d.c);
      });
    }
    if (!walk.real(t, b)) {
      return each_unit([&](int64_t unit) {
        const Upstream d = arriving(b, unit);
        for (int g = 0; g < G; g++) {
          store(f.dgates_x, (at * G + g) * H + unit, V(0));
          store(norms.dproducts, (at * G + g) * H + unit, V(0));
        }
        store(f.dq, at * H + unit, V(0));
        store_global(state_h + edge + unit, E::number(d.h));
        if (C::kHasC) store_global(state_c + edge + unit, E::number(d.c));
      });
    }
    constexpr int kNorms = kProductNorms + (C::kHasC ? 1 : 0);
    Number sizes[kNorms];
    for (int n = 0; n < kNorms; n++) sizes[n] = n < kProductNorms ? size_of(n) : static_cast<Number>(H);
    const Moments<Number, kNorms> of = moments(sizes, 0, [&](auto take) {
      each_unit([&](int64_t unit) {
        for (int g = 0; g < G; g++) take(norm_of(g), number(norms.products, (at * G + g) * H + unit));
        if constexpr (C::kHasC) take(kProductNorms, own_c(b, unit));
      });
    });
    // of the standardised c's gradient: the means of itself and of its product with that c
    Number means_c[2] = {};
    if constexpr (C::kHasC) {
      each_unit([&](int64_t unit) {
        const Number c = of.standardised(kProductNorms, own_c(b, unit)), d = output(b, unit, c).standardised;
        means_c[0] += d, means_c[1] += d * c;
      });
      add_up(means_c, 2 * kNorms);
      for (Number& mean : means_c) mean = mean / static_cast<Number>(H);
    }
    // the same of the product's
    Number means[2 * kProductNorms] = {};
    each_unit([&](int64_t unit) {
      const Upstream d = upstream(b, unit);
      V kept[4] = {}, none[4] = {}, da[4] = {}, h(0), y(0), dh(0), dc = d.c;
      for (int z = 0; z < Z; z++) kept[z] = load(f.gates, (at * Z + z) * H + unit);
      if (kHasQ) h = load(walk.template before<Stored>(f.y, f.h0, f.reset_h, step, b), unit);
      if (!Z) y = load(f.y, at * H + unit);
      if constexpr (C::kHasC) {
        const Number c = of.standardised(kProductNorms, own_c(b, unit));
        const Output out = output(b, unit, c);
        dc = dc + V((out.standardised - means_c[0] - c * means_c[1]) * of.factor[kProductNorms]);
        const V c_before = load(walk.template before<Stored>(f.cs, f.c0, f.reset_c, step, b), unit);
        dh = C::backward_from_c(d.h, kept, none, c_before, out.tanh_c, dc, da);
        store(f.dq, at * H + unit, out.scaled);
      } else {
        dh = C::backward(d.h, kept, none, h, y, V(0), V(0), dc, da);
        if (kHasQ) store(f.dq, at * H + unit, da[3]);
      }
      for (int g = 0; g < G; g++) {
        store(f.dgates_x, (at * G + g) * H + unit, da[g]);
        const Number product = number(norms.products, (at * G + g) * H + unit);
        const Number dv = E::number((norm_of(g) == 1 ? da[3] : da[g]) * gain(g, unit));
        store_global(sum_of(b, g) + unit, dv);
        means[norm_of(g)] += dv;
        means[kProductNorms + norm_of(g)] += dv * of.standardised(norm_of(g), product);
      }
      store_global(state_h + edge + unit, E::number(dh + d.h_stays));
      if (C::kHasC) store_global(state_c + edge + unit, E::number(dc + d.c_stays));
    });
    add_up(means, 2 * kNorms + (C::kHasC ? 2 : 0));
    for (int n = 0; n < 2 * kProductNorms; n++) means[n] = means[n] / sizes[n % kProductNorms];
    each_unit([&](int64_t unit) {
      for (int g = 0; g < G; g++) {
        const int n = norm_of(g);
        const Number product = of.standardised(n, number(norms.products, (at * G + g) * H + unit));
        const Number dv = load_global(sum_of(b, g) + unit) - means[n] - product * means[kProductNorms + n];
        store(norms.dproducts, (at * G + g) * H + unit, V(dv * of.factor[n]));
      }
    });
  }
  // The c that the cell made of a step, which zoneout may have made another one of.
  FUSEDRNN_DEVICE Number own_c(int64_t b, int64_t unit) const {
    const int64_t at = walk.row(t, b);
    if (f.noise.zoneout_c <= 0) return number(f.cs, at * H + unit);
    V kept[4];
    for (int z = 0; z < 4; z++) kept[z] = load(f.gates, (at * Z + z) * H + unit);
    return E::number(C::own_c(kept, load(walk.template before<Stored>(f.cs, f.c0, f.reset_c, step, b), unit)));
  }
  // Of the LSTM's h = o tanh(x), x of a standardised c: the tanh, and the gradients of x and of that c.
  struct Output {
    V tanh_c, scaled;
    Number standardised;
  };
  FUSEDRNN_DEVICE Output output(int64_t b, int64_t unit, Number c) const {
    const V o = load(f.gates, (walk.row(t, b) * Z + 3) * H + unit), tanh_c = hyperbolic_tangent(scaled_c(c, unit));
    const V scaled = upstream(b, unit).h * o * subtract_product(V(1), tanh_c, tanh_c);
    return {tanh_c, scaled, E::number(scaled * load(norms.gain_c, walk.s * H + unit))};
  }
};

// Blocks: as those of time_step.
template <class P, class C, Pass kPass>
FUSEDRNN_KERNEL(kStepThreads)
norm_product(const NormStepCall given, int64_t step) {
  const StepPlace at(given.step, StepTile<P, C, kPass>::kUnits);
  NormStep<P, C, kPass>(given, step, at.s, at.b0, at.unit0).product();
}

// Blocks: batch row fastest, then stream.
template <class P, class C, Pass kPass>
FUSEDRNN_KERNEL(kRowThreads)
norm_row(const NormStepCall given, int64_t step) {
  const int64_t B = given.step.call.problem.B, b = block_id() % B;
  const NormStep<P, C, kPass> row(given, step, block_id() / B, b, 0);
  if constexpr (kPass == Pass::forward)
    row.forward_row(b);
  else
    row.backward_row(b);
}
}  // namespace fusedrnn::cuda
