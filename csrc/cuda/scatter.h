// Computes: as scan.h, backward in a cluster. A CTA multiplies the gates' gradients of its own units, which never leave
//   its shared memory, by its part of W_hh and sends sums of dh, in float, to the CTAs that own them: 4 H bytes a row,
//   CTA and step arrive, against 2 G H where every CTA gets the whole vector (16-bit elements).
// Mapping: a warp has m_tiles tiles of 16 units of the whole H; finishing warps as in scan.h.
// Memory: as scan.h; two slots for the sums of all CTAs, two for the gradients.
// Synchronisation: an mbarrier that counts the bytes of all sums; one CTA barrier between gradients and product.
// Requires: all CTAs of the cluster. Sums are added in the order of the CTAs: the result does not depend on timing.
#pragma once
#include "cuda/scan.h"

namespace fusedrnn::cuda {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <Instance I>
struct Scatter {
  using L = Layout<I>;
  static constexpr int kKTiles = L::kKTiles, kMTiles = L::kProduct.m_tiles, kRegisters = L::kKRegisters;
  static constexpr int kSlot = I.H * I.rows * 4;  // bytes: sums of dh from all CTAs
  static constexpr int kVector = L::kK / L::kBlock * L::kTiles * 512;
  static_assert(L::kBackward && L::kK % L::kBlock == 0 && I.H / 16 % L::kWarps == 0);

  char *slots, *vectors;
  uint64_t* barriers;  // [2][chain]

  FUSEDRNN_DEVICE explicit Scatter(char* smem)
      : slots(smem + L::kWeightsSmem),
        vectors(slots + 2 * L::kChains * kSlot),
        barriers(reinterpret_cast<uint64_t*>(vectors + 2 * L::kChains * kVector)) {}
  FUSEDRNN_DEVICE char* slot(int s, int chain, int from, int unit_tile, int n) const {
    return slots + ((s & 1) * L::kChains + chain) * kSlot + ((from * L::kUnitTiles + unit_tile) * L::kTiles + n) * 512 +
           lane_id() * 16;
  }
  FUSEDRNN_DEVICE uint64_t* barrier(int s, int chain) const { return barriers + (s & 1) * L::kChains + chain; }
  // Two buffers: a warp whose sums all go to other CTAs may still read step s while finishing warps write s + 1.
  FUSEDRNN_DEVICE char* block(int s, int chain, int k_block, int n) const {
    return vectors + ((s & 1) * L::kChains + chain) * kVector + (k_block * L::kTiles + n) * 512;
  }
};

// What Backward::step publishes to: the gates' gradients stay in this CTA.
template <Instance I>
struct LocalVector {
  using L = Layout<I>;
  const Scatter<I>& at;
  int rank;
  FUSEDRNN_DEVICE void publish(int chain, int s, int k, int n, int half, const uint32_t (&words)[L::kWords]) {
    uint32_t w[L::kWords];
    to_operands<typename L::Element>(w, words);
    const int local = k / I.H * I.units + k % I.H - rank * I.units;
    store_shared(at.block(s, chain, local / L::kBlock, n) + (lane_id() >> 2) * 64 + local % L::kBlock * L::kBytes +
                     (lane_id() & 3) * 4 * L::kBytes + 4 * L::kPair * half,
                 w);
  }
};

template <Instance I>
FUSEDRNN_DEVICE void scan_scattering(const Params& p) {
  using L = Layout<I>;
  using ThisPass = Backward<I>;
  using Parts = Scatter<I>;
  constexpr int kTiles = L::kTiles, kHalves = L::kHalves, kChains = L::kChains;
  constexpr int kKTiles = Parts::kKTiles, kMTiles = Parts::kMTiles, kRegisters = Parts::kRegisters;
  const Place<I> c(p, cluster_rank());
  const bool finisher = c.finisher();
  const int warp = warp_id();
  char* const smem = smem_base();
  const Parts parts(smem);
  LocalVector<I> vector{parts, c.rank};

  uint4 kept[kRegisters > 0 ? kRegisters : 1];
  uint4* const shared = reinterpret_cast<uint4*>(smem) + warp * ((kMTiles * kKTiles - kRegisters) * 32) + c.lane;
  const uint4* const packed =
      packed_weights<I>(p, c.stream) + static_cast<size_t>(c.rank * L::kWarps + warp) * kMTiles * kKTiles * 32 + c.lane;
#pragma unroll
  for (int x = 0; x < kMTiles * kKTiles; ++x) {
    const uint4 tile = ld_once16(packed + x * 32);
    if (x < kRegisters)
      kept[x < kRegisters ? x : 0] = tile;
    else
      shared[(x - kRegisters) * 32] = tile;
  }

  Steps<I> rows(p, c);
  const ThisPass pass(p, c);
  typename ThisPass::State state[kChains];
  typename ThisPass::Inputs next[kChains];
  for (int chain = 0; chain < kChains && finisher; ++chain) {
    pass.begin(state[chain], p, c, rows, chain);
    if (rows.steps > 0) pass.load(next[chain], p, c, rows, chain, rows.first(), 0);
  }
  if (thread_id() == 0) {
    for (int i = 0; i < 2 * kChains; ++i) mbar_init(parts.barriers + i, 1);
    mbar_init_fence();
    for (int i = 0; i < 2 * kChains; ++i) mbar_arrive_expect(parts.barriers + i, Parts::kSlot);
  }
  cta_sync();
  cluster_sync();

  for (int s = 0; s <= rows.steps; ++s) {
    const int q = rows.steps - 1 - s;
    rows.fetch(p, c, q);
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      const typename ThisPass::Inputs in = next[chain];
      if (finisher && s + 1 < rows.steps) pass.load(next[chain], p, c, rows, chain, q - 1, 1);
      if (s > 0) {
        mbar_wait(parts.barrier(s, chain), ((s - 1) >> 1) & 1);
        if (thread_id() == 0) mbar_arrive_expect(parts.barrier(s, chain), Parts::kSlot);
      }
      if (finisher) {
        float sum[1][kTiles][kHalves][2] = {};
        if (s > 0)
#pragma unroll
          for (int r = 0; r < L::kTeam; ++r)
            for (int n = 0; n < kTiles; ++n)
              for (int f = 0; f < kHalves; ++f) {
                const float2 v =
                    *reinterpret_cast<const float2*>(parts.slot(s, chain, r, c.unit_tile, n) + 8 * (f + c.half));
                sum[0][n][f][0] += v.x;
                sum[0][n][f][1] += v.y;
              }
        if (s < rows.steps)
          pass.step(sum, in, state[chain], p, c, rows, chain, s, q, vector);
        else
          pass.last(sum, state[chain], p, c, rows, chain);
      }
      if (s == rows.steps) continue;
      cta_sync();
      uint4 v[kKTiles / 2][kTiles];
#pragma unroll
      for (int k = 0; k < kKTiles / 2; ++k)
        for (int n = 0; n < kTiles; ++n)
          v[k][n] = *reinterpret_cast<const uint4*>(parts.block(s, chain, k, n) + c.lane * 16);
#pragma unroll
      for (int i = 0; i < kMTiles; ++i) {
        float sums[kTiles][4] = {};
#pragma unroll
        for (int k = 0; k < kKTiles; ++k) {
          const int x = i * kKTiles + k;
          const uint4 a = x < kRegisters ? kept[x < kRegisters ? x : 0] : shared[(x - kRegisters) * 32];
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const uint4& b = v[k / 2][n];
            mma<typename L::Element>(sums[n], a, k & 1 ? b.z : b.x, k & 1 ? b.w : b.y);
          }
        }
        const int tile = L::scatter_tile(c.rank, warp, i), owner = tile / L::kUnitTiles;
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
          st_async16(dsm_map(parts.slot(s + 1, chain, c.rank, tile % L::kUnitTiles, n), owner),
                     dsm_map(parts.barrier(s + 1, chain), owner), sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
      }
    }
    rows.advance();
  }
  cluster_sync();
  if (finisher) pass.end(p, c, rows);
}
#endif

template <Instance I>
FUSEDRNN_DEVICE void scan_scatter(const Params& p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  scan_scattering<I>(p);
#endif
}
}  // namespace fusedrnn::cuda
