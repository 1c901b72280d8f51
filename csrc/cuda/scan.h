// Computes: all T steps of S streams of a recurrence, or of its adjoint down to the gradients of the gates'
//   pre-activations, where a team's whole vector reaches each of its CTAs (cta, cluster, grid).
// Mapping: a warp has 16 units and a slice of k; see layout.h. Chains are independent rows that take turns, so that
//   one's product hides another's exchange.
// Memory: weights in registers and shared memory for the whole sequence; the state in float registers; inputs of the
//   next step are loaded during this one.
// Synchronisation: the exchange's, once a step and chain; a named barrier among the warps that split k.
// Requires: cluster: all CTAs of the cluster. Grid: all CTAs of a team resident, the output filled with 0xffffffff.
// Source: Persistent RNNs (Diamos et al. 2016) for weights on chip; exchanges: research of this project.
#pragma once
#include "cuda/pass_backward.h"
#include "cuda/pass_forward.h"
#include "cuda/product.h"

namespace fusedrnn::cuda {
template <Instance I>
using PassOf = std::conditional_t<I.pass == Pass::backward, Backward<I>, Forward<I>>;

template <Instance I, class Exchange>
FUSEDRNN_DEVICE void scan_with(const Params& p) {
  using L = Layout<I>;
  using ThisPass = PassOf<I>;
  constexpr int kM = L::kM, kTiles = L::kTiles, kSplit = L::kSplit, kHalves = L::kHalves, kChains = L::kChains;
  const Place<I> c(p, block_id() % L::kTeam);
  const bool finisher = c.finisher();

  // Partial sums of the slices of k. Where a warp waits for its own slice of the vector only (grid) it may be a step
  // ahead of the finishing warps of its own CTA, hence two buffers.
  constexpr int kBuffers = L::kGrid ? 2 : 1;
  char* const smem = smem_base();
  float2* const partial_base = reinterpret_cast<float2*>(smem);
  Steps<I> rows(p, c);
  const int steps = rows.steps + ThisPass::kExtra;
  Exchange exchange(smem + kBuffers * L::kSums + L::kWeightsSmem, p, c, steps);
  const WarpWeights<I> weights(
      packed_weights<I>(p, c.stream) + static_cast<size_t>(c.rank * L::kWarps + warp_id()) * L::kKTiles * kM * 32,
      smem + kBuffers * L::kSums);
  float bias[kM][kHalves];
  for (int m = 0; m < kM; ++m)
    for (int f = 0; f < kHalves; ++f) bias[m][f] = bias_of<I>(p, c, m, f);

  const ThisPass pass(p, c);
  typename ThisPass::State state[kChains];
  typename ThisPass::Inputs next[kChains];
  for (int chain = 0; chain < kChains; ++chain) {
    if (!finisher) break;
    pass.begin(state[chain], p, c, rows, chain);
    if (rows.steps > 0) pass.load(next[chain], p, c, rows, chain, rows.first(), 0);
  }
  exchange.begin(ThisPass::initial(p), p, c);

  for (int s = 0; s < steps; ++s) {
    const int q = L::kBackward ? rows.steps - 1 - s : s;
    rows.fetch(p, c, q);
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      const typename ThisPass::Inputs in = next[chain];
      if (finisher && s + 1 < rows.steps) pass.load(next[chain], p, c, rows, chain, q + Steps<I>::kAhead, 1);
      exchange.wait(chain, s);

      float sums[2][kM][kTiles][4] = {};
      weights.multiply(sums, exchange, chain, s, c.slice, p, c, rows, q);
      for (int m = 0; m < kM; ++m)
        for (int n = 0; n < kTiles; ++n)
          for (int e = 0; e < 4; ++e) sums[0][m][n][e] += sums[1][m][n][e];

      float2* const partial = partial_base + (kBuffers == 2 ? (s & 1) * (L::kSums / 8) : 0) +
                              (chain * L::kUnitTiles + c.unit_tile) * 2 * kSplit * kM * kTiles * 32 + c.lane;
      if constexpr (kSplit > 1) {
        for (int f = 0; f < 2; ++f)
          if (f != c.slice)
            for (int m = 0; m < kM; ++m)
              for (int n = 0; n < kTiles; ++n)
                partial[((f * kSplit + c.slice) * kM + m) * kTiles * 32 + n * 32] =
                    make_float2(sums[0][m][n][2 * f], sums[0][m][n][2 * f + 1]);
        named_sync(1 + c.unit_tile, 32 * kSplit);
      }
      if (finisher) {
        float sum[kM][kTiles][kHalves][2];
        for (int m = 0; m < kM; ++m)
          for (int n = 0; n < kTiles; ++n)
            for (int f = 0; f < kHalves; ++f)
              for (int e = 0; e < 2; ++e)
                sum[m][n][f][e] =
                    bias[m][f] + (kSplit == 1 || c.slice == 0 ? sums[0][m][n][2 * f + e] : sums[0][m][n][2 + e]);
        if constexpr (kSplit > 1) {
#pragma unroll
          for (int d = 1; d < kSplit; ++d) {
            const int from = c.slice ^ d;  // a fixed order: results do not depend on timing
            for (int m = 0; m < kM; ++m)
              for (int n = 0; n < kTiles; ++n) {
                const float2 v = partial[((c.slice * kSplit + from) * kM + m) * kTiles * 32 + n * 32];
                sum[m][n][0][0] += v.x;
                sum[m][n][0][1] += v.y;
              }
          }
        }
        if (s < rows.steps)
          pass.step(sum, in, state[chain], p, c, rows, chain, s, q, exchange);
        else
          pass.last(sum, state[chain], p, c, rows, chain);
      }
    }
    rows.advance();
  }
  exchange.end();
  if (finisher) pass.end(p, c, rows);
}

template <Instance I>
FUSEDRNN_DEVICE void scan(const Params& p) {
  if constexpr (I.exchange == Exchange::cta) scan_with<I, CtaExchange<I>>(p);
  if constexpr (I.exchange == Exchange::grid) scan_with<I, GridExchange<I>>(p);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if constexpr (I.exchange == Exchange::cluster) scan_with<I, ClusterExchange<I>>(p);
#endif
}
}  // namespace fusedrnn::cuda
