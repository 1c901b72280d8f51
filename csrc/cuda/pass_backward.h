// The pointwise half of a backward step: what it loads ahead, the cell's adjoint, and what it stores. The product of
// the step has summed the gradient of h that came through W_hh; one more product behind the last step gives dh0.
#pragma once
#include "cuda/pass.h"

namespace fusedrnn::cuda {
template <Instance I>
struct Backward : PassBase<I> {
  using L = Layout<I>;
  using Base = PassBase<I>;
  using V = typename L::V;
  using Element = typename L::Element;
  using State = typename Base::State;
  static constexpr int kG = L::kG, kZ = L::kZ, kTiles = L::kTiles, kHalves = L::kHalves, kWords = L::kWords;
  static constexpr int kExtra = 1;
  static constexpr bool kNeedsBefore = L::kHasQ || L::kHasC;  // GRU: h, LSTM: c of the step before; RNN: y of this one
  using Sums = float[1][kTiles][kHalves][2];
  struct Inputs {
    uint32_t dy[kTiles][kWords], kept[kTiles][kZ + 1][kWords], state[kTiles][kWords];
  };

  const char *dy, *gates, *states;  // this lane's units; states: c of the LSTM, h of the others
  char *dgates_x, *dq;

  FUSEDRNN_DEVICE Backward(const Params& p, const Place<I>& c)
      : dy(p.dy ? c.sequence(p, p.dy, 1) : nullptr),
        gates(kZ ? c.sequence(p, p.gates, kZ) : nullptr),
        states(c.sequence(p, L::kHasC ? p.cs : p.y, 1)),
        dgates_x(c.sequence(p, p.dgates_x, kG)),
        dq(L::kHasQ ? c.sequence(p, p.dq, 1) : nullptr) {}
  static FUSEDRNN_DEVICE const char* initial(const Params&) { return nullptr; }

  FUSEDRNN_DEVICE void begin(State& state, const Params& p, const Place<I>& c, const Steps<I>& rows, int chain) const {
    for (int n = 0; n < kTiles; ++n) {
      const bool valid = rows.inside(p, c, chain, n) && !L::kMasked;  // masked: at the row's own last step
      Base::load_edge(state.h[n], p.dhn, p, c, chain, n, valid);
      if (L::kHasC) {
        Base::load_edge(state.c[n], p.dcn, p, c, chain, n, valid);
        load_words(state.c_words[n], states + row_bytes(rows.at(chain, n), Place<I>::stride(p, 1)),
                   rows.mine(p, c, chain, n, rows.steps - 1));
      }
    }
  }
  FUSEDRNN_DEVICE void load(Inputs& in, const Params& p, const Place<I>& c, const Steps<I>& rows, int chain, int q,
                            int ahead) const {
    for (int n = 0; n < kTiles; ++n) {
      const int row = rows.ahead(chain, n, ahead);
      const bool mine = rows.mine(p, c, chain, n, q);
      load_words(in.dy[n], dy + row_bytes(row, Place<I>::stride(p, 1)), dy && mine);
      if constexpr (kZ > 0) {
        const char* const from = gates + row_bytes(row, Place<I>::stride(p, kZ));
        for (int z = 0; z < kZ; ++z) load_words(in.kept[n][z], from + z * L::hidden(p) * L::kBytes, mine);
      }
      if constexpr (!kNeedsBefore) {
        load_words(in.state[n], states + row_bytes(row, Place<I>::stride(p, 1)), mine);
      } else if (q > 0) {  // also of a row whose last step was q - 1: in the next step it needs its c
        load_words(in.state[n], states + row_bytes(rows.ahead(chain, n, ahead + 1), Place<I>::stride(p, 1)),
                   rows.mine(p, c, chain, n, q - 1));
      } else {
        const char* const initial = L::kHasC ? p.c0 : p.h0;
        load_words(in.state[n], initial + c.edge(p, chain, n), initial && mine);
      }
    }
  }

  // What arrives from step q + 1 does not pass to a row that started anew there.
  static FUSEDRNN_DEVICE void cut(V (&dh)[kHalves][2], V (&carried)[kHalves][2], V (&dc)[kHalves][2], const Place<I>& c,
                                  uint32_t cuts) {
    if (!cuts) return;
    for (int f = 0; f < kHalves; ++f)
      for (int e = 0; e < 2; ++e)
        if (Steps<I>::computed_bit(c, cuts, e)) dh[f][e] = carried[f][e] = dc[f][e] = V(0);
  }

  template <class Exchange>
  FUSEDRNN_DEVICE void step(const Sums& sums, const Inputs& in, State& state, const Params& p, const Place<I>& c,
                            const Steps<I>& rows, int chain, int s, int q, Exchange& exchange) const {
    for (int n = 0; n < kTiles; ++n) {
      V dh[kHalves][2];
      for (int f = 0; f < kHalves; ++f)
        for (int e = 0; e < 2; ++e) dh[f][e] = sums[0][n][f][e];
      const bool mine = rows.mine(p, c, chain, n, q);
      uint32_t before[kWords];
      for (int i = 0; i < kWords; ++i) before[i] = in.state[n][i];
      if constexpr (L::kMasked) {
        const int i = Steps<I>::index(chain, n);
        cut(dh, state.h[n], state.c[n], c, rows.cut[i]);
        if constexpr (kNeedsBefore)
          if (!mine || Steps<I>::natural_bit(c, rows.cut_next[i]))
            for (int w = 0; w < kWords; ++w) before[w] = 0;
        const bool last = rows.last(p, chain, n, q);
        if (vote_any(last)) {  // dhn and dcn enter at the row's own last step
          V given[kHalves][2];
          const bool valid = last && rows.inside(p, c, chain, n);
          Base::load_edge(given, p.dhn, p, c, chain, n, valid);
          for (int f = 0; f < kHalves; ++f)
            for (int e = 0; e < 2; ++e) state.h[n][f][e] = state.h[n][f][e] + given[f][e];
          if (L::kHasC) {
            Base::load_edge(given, p.dcn, p, c, chain, n, valid);
            for (int f = 0; f < kHalves; ++f)
              for (int e = 0; e < 2; ++e) state.c[n][f][e] = state.c[n][f][e] + given[f][e];
          }
        }
      }
      uint32_t words[kG + 1][kWords];
      for (int f = 0; f < kHalves; ++f) {
        V of_y[2], kept[kZ + 1][2], before_v[2], c_v[2], da[kG + 1][2];
        to_sums<Element>(in.dy[n] + f * L::kPair, of_y);
        for (int z = 0; z < kZ; ++z) to_sums<Element>(in.kept[n][z] + f * L::kPair, kept[z]);
        to_sums<Element>(before + f * L::kPair, before_v);
        if (L::kHasC) to_sums<Element>(state.c_words[n] + f * L::kPair, c_v);
        for (int e = 0; e < 2; ++e) {
          V keep[kZ + 1], d[kG + 1];
          for (int z = 0; z < kZ; ++z) keep[z] = kept[z][e];
          const V none[4] = {V(0), V(0), V(0), V(0)}, total = of_y[e] + dh[f][e] + state.h[n][f][e], x = before_v[e];
          state.h[n][f][e] = L::Cell::backward(total, keep, none, x, x, x, c_v[e], state.c[n][f][e], d);
          for (int g = 0; g < kG + L::kHasQ; ++g) da[g][e] = d[g];
        }
        for (int g = 0; g < kG + L::kHasQ; ++g) to_natural<Element>(da[g], words[g] + f * L::kPair);
      }
      if (L::kHasC)
        for (int i = 0; i < kWords; ++i) state.c_words[n][i] = in.state[n][i];  // what this step started from
      for (int g = 0; g < kG; ++g)
        exchange.publish(chain, s, g * I.H + c.unit0, n, c.half, words[L::recurrent_part(g)]);
      const int row = rows.at(chain, n);
      char* const to = dgates_x + row_bytes(row, Place<I>::stride(p, kG));
      for (int g = 0; g < kG; ++g) store_words(to + g * L::hidden(p) * L::kBytes, words[g], mine);
      if (L::kHasQ) store_words(dq + row_bytes(row, Place<I>::stride(p, 1)), words[kG], mine);
    }
  }

  static FUSEDRNN_DEVICE void last(const Sums& sums, State& state, const Params& p, const Place<I>& c,
                                   const Steps<I>& rows, int chain) {
    for (int n = 0; n < kTiles; ++n) {
      V dh[kHalves][2];
      for (int f = 0; f < kHalves; ++f)
        for (int e = 0; e < 2; ++e) dh[f][e] = sums[0][n][f][e];
      bool valid = rows.inside(p, c, chain, n);
      if constexpr (L::kMasked) {
        const int i = Steps<I>::index(chain, n);
        cut(dh, state.h[n], state.c[n], c, rows.cut[i]);
        valid = valid && rows.length[i] > 0;
      }
      for (int f = 0; f < kHalves; ++f)
        for (int e = 0; e < 2; ++e) dh[f][e] = dh[f][e] + state.h[n][f][e];
      Base::store_edge(p.dh0, dh, p, c, chain, n, valid);
      if (L::kHasC) Base::store_edge(p.dc0, state.c[n], p, c, chain, n, valid);
    }
  }

  FUSEDRNN_DEVICE void end(const Params& p, const Place<I>& c, const Steps<I>& rows) const {
    Base::clear(dgates_x, kG, p, c, rows);
    if (L::kHasQ) Base::clear(dq, 1, p, c, rows);
    Base::rows_without_steps(p, c, rows, [&](int chain, int n) {
      Base::pass_on(p.dh0, p.dhn, p, c, chain, n);
      if (L::kHasC) Base::pass_on(p.dc0, p.dcn, p, c, chain, n);
    });
  }
};
}  // namespace fusedrnn::cuda
