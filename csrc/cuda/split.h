// Computes: as scan.h, with the grid's exchange, k being split over clusters: it lifts the limit that the bandwidth of L2
//   sets for large H.
// Mapping: in scan.h a CTA multiplies its own units by the whole vector, so every CTA pulls K elements a row through L2
//   each step. Here the (unit tile, slice of k) pairs of the neighbouring CTAs of one cluster are dealt the other way: a
//   CTA takes few slices of all their tiles. It pulls a `cluster`-th of the elements, holds as many weights (the same
//   packed tiles in another order), and sends partial sums to the tiles' owners, who add them in the order of the
//   slices.
// Memory: as scan.h; two slots for the sums of all slices.
// Synchronisation: the grid's; an mbarrier that counts the bytes of the sums. Two slots are enough: a CTA sends sums of
//   step s + 2 after it has seen elements of vector s + 2, whose producer has seen sums of step s + 1, among them of
//   the slice that holds this owner's units: the owner has finished step s.
// Requires: as grid and cluster; a row with a step in every step and chain, so no masks.
#pragma once
#include "cuda/scan.h"

namespace fusedrnn::cuda {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <Instance I>
FUSEDRNN_DEVICE void scan_splitting(const Params& p) {
  using L = Layout<I>;
  using ThisPass = PassOf<I>;
  constexpr int kM = L::kM, kTiles = L::kTiles, kSplit = L::kSplit, kChains = L::kChains;
  constexpr int kSlices = kSplit / I.cluster;                        // of a CTA
  constexpr int kSlot = L::kUnitTiles * kSplit * kM * kTiles * 512;  // [unit tile][slice][m][n][lane] of 16 bytes
  static_assert(kSplit % I.cluster == 0 && L::kTeam % I.cluster == 0 && L::kHalves == 1 && !L::kMasked);
  const Place<I> c(p, block_id() % L::kTeam);  // of the units that this CTA finishes
  const bool finisher = c.finisher();
  // Of the product: unit tile `unit_tile` of the cluster's member `owner`, and a slice of k.
  const int member = cluster_rank(), tile = warp_id() / kSlices, slice = member * kSlices + warp_id() % kSlices;
  const int owner = tile / L::kUnitTiles, unit_tile = tile % L::kUnitTiles;

  char* const smem = smem_base();
  char* const slots = smem + L::kWeightsSmem;
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(slots + 2 * kChains * kSlot);  // [2][chain]
  const auto slot = [&](int s, int chain, int of_tile, int from, int m, int n) {
    return slots + ((s & 1) * kChains + chain) * kSlot + (((of_tile * kSplit + from) * kM + m) * kTiles + n) * 512 +
           c.lane * 16;
  };
  Steps<I> rows(p, c);
  const int steps = rows.steps + ThisPass::kExtra;
  GridExchange<I> exchange(smem, p, c, steps);
  const WarpWeights<I> weights(
      packed_weights<I>(p, c.stream) +
          (static_cast<size_t>(c.rank - member + owner) * L::kWarps + unit_tile * kSplit + slice) * L::kKTiles * kM *
              32,
      smem);
  float bias[kM];
  for (int m = 0; m < kM; ++m) bias[m] = bias_of<I>(p, c, m, 0);

  const ThisPass pass(p, c);
  typename ThisPass::State state[kChains];
  typename ThisPass::Inputs next[kChains];
  for (int chain = 0; chain < kChains && finisher; ++chain) {
    pass.begin(state[chain], p, c, rows, chain);
    pass.load(next[chain], p, c, rows, chain, rows.first(), 0);
  }
  exchange.begin(ThisPass::initial(p), p, c);
  if (thread_id() == 0) {
    for (int i = 0; i < 2 * kChains; ++i) mbar_init(barriers + i, 1);
    mbar_init_fence();
    for (int i = 0; i < 2 * kChains; ++i) mbar_arrive_expect(barriers + i, kSlot);
  }
  cta_sync();
  cluster_sync();

  for (int s = 0; s < steps; ++s) {
    const int q = L::kBackward ? rows.steps - 1 - s : s;
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      const typename ThisPass::Inputs in = next[chain];
      if (finisher && s + 1 < rows.steps) pass.load(next[chain], p, c, rows, chain, q + Steps<I>::kAhead, 1);
      float sums[2][kM][kTiles][4] = {};
      weights.multiply(sums, exchange, chain, s, slice, p, c, rows, q);
      uint64_t* const barrier = barriers + (s & 1) * kChains + chain;
      const Dsm there = dsm_map(slot(s, chain, unit_tile, slice, 0, 0), owner), count = dsm_map(barrier, owner);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float (&even)[4] = sums[0][m][n], (&odd)[4] = sums[1][m][n];
          st_async16(there + (m * kTiles + n) * 512, count, even[0] + odd[0], even[1] + odd[1], even[2] + odd[2],
                     even[3] + odd[3]);
        }
      if (finisher) {
        mbar_wait(barrier, (s >> 1) & 1);
        if (thread_id() == 0) mbar_arrive_expect(barrier, kSlot);  // for step s + 2
        float sum[kM][kTiles][1][2];
        for (int m = 0; m < kM; ++m)
          for (int n = 0; n < kTiles; ++n) {
            sum[m][n][0][0] = sum[m][n][0][1] = bias[m];
#pragma unroll
            for (int from = 0; from < kSplit; ++from) {  // a fixed order
              const float2 v = *reinterpret_cast<const float2*>(slot(s, chain, c.unit_tile, from, m, n) + 8 * c.half);
              sum[m][n][0][0] += v.x;
              sum[m][n][0][1] += v.y;
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
  cluster_sync();
}
#endif

template <Instance I>
FUSEDRNN_DEVICE void scan_split(const Params& p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  scan_splitting<I>(p);
#endif
}
}  // namespace fusedrnn::cuda
