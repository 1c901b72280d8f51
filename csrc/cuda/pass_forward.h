// The pointwise half of a forward step: what it loads ahead, the cell, and what it stores.
#pragma once
#include "cuda/pass.h"

namespace fusedrnn::cuda {
template <Instance I>
struct Forward : PassBase<I> {
  using L = Layout<I>;
  using Base = PassBase<I>;
  using V = typename L::V;
  using Element = typename L::Element;
  using State = typename Base::State;
  static constexpr int kG = L::kG, kZ = L::kZ, kTiles = L::kTiles, kHalves = L::kHalves, kWords = L::kWords;
  static constexpr int kExtra = 0;  // steps behind the last one
  using Sums = float[kG][kTiles][kHalves][2];
  struct Inputs {
    uint32_t gates_x[kTiles][kG][kWords];
  };

  const char* gates_x;  // this lane's units
  char *y, *cs, *gates;

  FUSEDRNN_DEVICE Forward(const Params& p, const Place<I>& c)
      : gates_x(c.sequence(p, p.gates_x, kG)),
        y(c.sequence(p, p.y, 1)),
        cs(L::kHasC && p.cs ? c.sequence(p, p.cs, 1) : nullptr),
        gates(kZ && p.gates ? c.sequence(p, p.gates, kZ) : nullptr) {}
  static FUSEDRNN_DEVICE const char* initial(const Params& p) { return p.h0; }

  static FUSEDRNN_DEVICE void begin(State& state, const Params& p, const Place<I>& c, const Steps<I>& rows, int chain) {
    for (int n = 0; n < kTiles; ++n) {
      bool valid = rows.inside(p, c, chain, n);
      if constexpr (L::kMasked) valid = valid && !Steps<I>::natural_bit(c, rows.cut_now[Steps<I>::index(chain, n)]);
      Base::load_edge(state.h[n], p.h0, p, c, chain, n, valid);
      if (L::kHasC) Base::load_edge(state.c[n], p.c0, p, c, chain, n, valid);
    }
  }
  // Of step q, `ahead` steps after the one at hand.
  FUSEDRNN_DEVICE void load(Inputs& in, const Params& p, const Place<I>& c, const Steps<I>& rows, int chain, int q,
                            int ahead) const {
    for (int n = 0; n < kTiles; ++n) {
      const char* const from = gates_x + row_bytes(rows.ahead(chain, n, ahead), Place<I>::stride(p, kG));
      for (int g = 0; g < kG; ++g)
        load_words(in.gates_x[n][g], from + g * L::hidden(p) * L::kBytes, rows.mine(p, c, chain, n, q));
    }
  }

  template <class Exchange>
  FUSEDRNN_DEVICE void step(const Sums& sums, const Inputs& in, State& state, const Params& p, const Place<I>& c,
                            const Steps<I>& rows, int chain, int s, int q, Exchange& exchange) const {
    for (int n = 0; n < kTiles; ++n) {
      uint32_t h_words[kWords], c_words[kWords], kept_words[kZ + 1][kWords];
      for (int f = 0; f < kHalves; ++f) {
        V of_x[kG][2], kept[kZ + 1][2];
        for (int g = 0; g < kG; ++g) to_sums<Element>(in.gates_x[n][g] + f * L::kPair, of_x[g]);
        for (int e = 0; e < 2; ++e) {
          V a[4], keep[kZ + 1];
          for (int g = 0; g < kG; ++g) {
            const V of_h = sums[g][n][f][e];
            const bool apart = L::kHasQ && g == kG - 1;
            a[g] = apart ? of_x[g][e] : of_x[g][e] + of_h;
            if (apart) a[kG] = of_h;
          }
          state.h[n][f][e] = L::Cell::forward(a, state.h[n][f][e], state.c[n][f][e], keep);
          for (int z = 0; z < kZ; ++z) kept[z][e] = keep[z];
        }
        for (int z = 0; z < kZ; ++z) to_natural<Element>(kept[z], kept_words[z] + f * L::kPair);
      }
      Base::to_words(state.h[n], h_words);
      if (L::kHasC) Base::to_words(state.c[n], c_words);
      const bool last = rows.last(p, chain, n, q), mine = rows.mine(p, c, chain, n, q);
      if (L::kMasked ? vote_any(last) : last) {
        Base::store_edge(p.hn, h_words, p, c, chain, n, last && mine);
        if (L::kHasC) Base::store_edge(p.cn, c_words, p, c, chain, n, last && mine);
      }
      const int row = rows.at(chain, n);
      if constexpr (L::kMasked) {  // a row that starts anew after this step: zeros are published and carried on
        const uint32_t cuts = rows.cut[Steps<I>::index(chain, n)];
        uint32_t published[kWords];
        for (int i = 0; i < kWords; ++i) published[i] = h_words[i];
        if (cuts) {  // the same in the whole warp, and rare
          for (int i = 0; i < kWords; ++i) published[i] = Steps<I>::natural_bit(c, cuts) ? 0 : published[i];
          for (int f = 0; f < kHalves; ++f)
            for (int e = 0; e < 2; ++e)
              if (Steps<I>::computed_bit(c, cuts, e)) state.h[n][f][e] = state.c[n][f][e] = V(0);
        }
        exchange.publish(chain, s, c.unit0, n, c.half, published);
      } else {
        exchange.publish(chain, s, c.unit0, n, c.half, h_words);
      }
      store_words(y + row_bytes(row, Place<I>::stride(p, 1)), h_words, mine);
      if (L::kHasC) store_words(cs + row_bytes(row, Place<I>::stride(p, 1)), c_words, mine && cs);
      if (kZ && gates) {
        char* const to = gates + row_bytes(row, Place<I>::stride(p, kZ));
        for (int z = 0; z < kZ; ++z) store_words(to + z * L::hidden(p) * L::kBytes, kept_words[z], mine);
      }
    }
  }
  static FUSEDRNN_DEVICE void last(const Sums&, State&, const Params&, const Place<I>&, const Steps<I>&, int) {}

  FUSEDRNN_DEVICE void end(const Params& p, const Place<I>& c, const Steps<I>& rows) const {
    Base::clear(y, 1, p, c, rows);
    if (L::kHasC) Base::clear(cs, 1, p, c, rows);
    if (kZ) Base::clear(gates, kZ, p, c, rows);
    Base::rows_without_steps(p, c, rows, [&](int chain, int n) {
      Base::pass_on(p.hn, p.h0, p, c, chain, n);
      if (L::kHasC) Base::pass_on(p.cn, p.c0, p, c, chain, n);
    });
  }
};
}  // namespace fusedrnn::cuda
