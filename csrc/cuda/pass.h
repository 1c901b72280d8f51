// What forward and backward share: the pointers of a lane, the state that it carries through the loop in float, and
// what is left to do after the loop.
#pragma once
#include "cuda/exchange.h"

namespace fusedrnn::cuda {
template <Instance I>
struct PassBase {
  using L = Layout<I>;
  using V = typename L::V;
  using Element = typename L::Element;
  static constexpr int kTiles = L::kTiles, kHalves = L::kHalves, kWords = L::kWords;
  using Pair = V[kHalves][2];  // a row half of a unit tile: of the two batch rows that a lane computes
  struct State {               // forward: h, c; backward: the gradient of h past the product, dc, c
    V h[kTiles][kHalves][2], c[kTiles][kHalves][2];
    uint32_t c_words[kTiles][kWords];
  };

  // Of the rows for which `valid` (the others: 0), from an array [S, B, H] or null.
  static FUSEDRNN_DEVICE void load_edge(Pair& v, const char* from, const Params& p, const Place<I>& c, int chain,
                                        int tile, bool valid) {
    uint32_t w[kWords];
    load_words(w, from + c.edge(p, chain, tile), from && valid);
    for (int f = 0; f < kHalves; ++f) to_sums<Element>(w + f * L::kPair, v[f]);
  }
  static FUSEDRNN_DEVICE void store_edge(char* to, const uint32_t (&w)[kWords], const Params& p, const Place<I>& c,
                                         int chain, int tile, bool valid) {
    if (to) store_words(to + c.edge(p, chain, tile), w, valid);
  }
  static FUSEDRNN_DEVICE void to_words(const Pair& v, uint32_t (&w)[kWords]) {
    for (int f = 0; f < kHalves; ++f) to_natural<Element>(v[f], w + f * L::kPair);
  }
  static FUSEDRNN_DEVICE void store_edge(char* to, const Pair& v, const Params& p, const Place<I>& c, int chain,
                                         int tile, bool valid) {
    uint32_t w[kWords];
    to_words(v, w);
    store_edge(to, w, p, c, chain, tile, valid);
  }

  // After the loop: a row without any step hands its state on, and an output is zero beyond its row's end.
  static FUSEDRNN_DEVICE void pass_on(char* to, const char* from, const Params& p, const Place<I>& c, int chain,
                                      int tile) {
    uint32_t w[kWords];
    load_words(w, from + c.edge(p, chain, tile), from != nullptr);
    store_edge(to, w, p, c, chain, tile, true);
  }
  static FUSEDRNN_DEVICE void clear(char* sequence, int vectors, const Params& p, const Place<I>& c,
                                    const Steps<I>& rows) {
    if constexpr (!L::kMasked) return;
    if (!sequence || p.offsets) return;
    const uint32_t zeros[kWords] = {};
    for (int chain = 0; chain < L::kChains; ++chain)
      for (int n = 0; n < kTiles; ++n)
        if (rows.inside(p, c, chain, n))
          for (int t = rows.length[Steps<I>::index(chain, n)]; t < p.T; ++t)
            for (int g = 0; g < vectors; ++g)
              store_words(sequence + row_bytes(t * p.B + c.row(chain, n), Place<I>::stride(p, vectors)) +
                              g * L::hidden(p) * L::kBytes,
                          zeros, true);
  }
  template <class Each>
  static FUSEDRNN_DEVICE void rows_without_steps(const Params& p, const Place<I>& c, const Steps<I>& rows, Each each) {
    if constexpr (L::kMasked)
      for (int chain = 0; chain < L::kChains; ++chain)
        for (int n = 0; n < kTiles; ++n)
          if (rows.inside(p, c, chain, n) && rows.length[Steps<I>::index(chain, n)] == 0) each(chain, n);
  }
};
}  // namespace fusedrnn::cuda
