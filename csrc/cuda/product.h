// The weight tiles of a warp, for the whole sequence in its registers and in shared memory, and their product with the
// vector of a step.
#pragma once
#include "cuda/exchange_grid.h"

namespace fusedrnn::cuda {
template <Instance I>
struct WarpWeights {
  using L = Layout<I>;
  static constexpr int kKTiles = L::kKTiles, kRegisters = L::kKRegisters, kM = L::kM;
  uint4 kept[kRegisters > 0 ? kRegisters : 1][kM];
  uint4* shared;

  // from: packed tiles of the warp.
  FUSEDRNN_DEVICE WarpWeights(const uint4* from, char* smem) {
    shared = reinterpret_cast<uint4*>(smem) + warp_id() * ((kKTiles - kRegisters) * kM * 32) + lane_id();
#pragma unroll
    for (int k = 0; k < kKTiles; ++k)
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const uint4 tile = ld_once16(from + (k * kM + m) * 32 + lane_id());
        if (k < kRegisters)
          kept[k < kRegisters ? k : 0][m] = tile;
        else
          shared[((k - kRegisters) * kM + m) * 32] = tile;
      }
  }
  FUSEDRNN_DEVICE uint4 at(int k, int m) const {
    return k < kRegisters ? kept[k < kRegisters ? k : 0][m] : shared[((k - kRegisters) * kM + m) * 32];
  }

  // sums[0] + sums[1]: even and odd k-tiles are independent chains of mma. slice: of k.
  template <class Exchange>
  FUSEDRNN_DEVICE void multiply(float (&sums)[2][kM][L::kTiles][4], const Exchange& exchange, int chain, int s,
                                int slice, const Params& p, const Place<I>& c, const Steps<I>& rows, int q) const {
#pragma unroll
    for (int block = 0; block < kKTiles / 2; block += Exchange::kChunk) {
      uint4 v[Exchange::kChunk][L::kTiles];
      exchange.load(v, chain, s, slice * (kKTiles / 2) + block, p, c, rows, q);
#pragma unroll
      for (int k = 0; k < 2 * Exchange::kChunk; ++k)
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const uint4 a = at(2 * block + k, m);
#pragma unroll
          for (int n = 0; n < L::kTiles; ++n) {
            const uint4& b = v[k / 2][n];
            mma<typename L::Element>(sums[k & 1][m][n], a, k & 1 ? b.z : b.x, k & 1 ? b.w : b.y);
          }
        }
    }
  }
};

template <Instance I>
FUSEDRNN_DEVICE const uint4* packed_weights(const Params& p, int stream) {
  using L = Layout<I>;
  return reinterpret_cast<const uint4*>(p.w + static_cast<ptrdiff_t>(stream) * L::kG * I.H * I.H * L::kBytes);
}
// Of the unit that this lane finishes in row half f.
template <Instance I>
FUSEDRNN_DEVICE float bias_of(const Params& p, const Place<I>& c, int gate, int f) {
  using L = Layout<I>;
  const int unit = c.unit0 + row_unit(c.lane >> 2) + 2 * (f + c.half), H = L::hidden(p);
  if (L::kBackward || !p.bias || unit >= H) return 0;
  const typename L::Word word = load_global(reinterpret_cast<const typename L::Word*>(p.bias) +
                                            (static_cast<ptrdiff_t>(c.stream) * L::kG + gate) * H + unit);
  if constexpr (L::kPack == 1) {
    return bits_float(word);
  } else {
    float low, high;
    unpack2<typename L::Element>(word, low, high);
    return low;
  }
}
}  // namespace fusedrnn::cuda
