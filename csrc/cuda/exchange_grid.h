// Grid: the vector of a step travels through L2 in the output itself. The output is filled beforehand with 0xffffffff,
// a NaN that no store produces, and readers poll the data: one trip through L2, no fence and no flag.
//   forward:  y
//   backward: dgates_x; the last gate of the GRU in dq
#pragma once
#include "cuda/exchange.h"

namespace fusedrnn::cuda {
template <Instance I>
struct GridExchange {
  using L = Layout<I>;
  using Element = typename L::Element;
  static constexpr int kChunk = grid_chunk(I);
  static constexpr int kGateBlocks = I.H / L::kBlock;
  const char *init, *out, *out_q;  // of the stream

  FUSEDRNN_DEVICE GridExchange(char*, const Params& p, const Place<I>& c, int) : init(nullptr) {
    const ptrdiff_t vector = static_cast<ptrdiff_t>(c.stream) * L::hidden(p) * L::kBytes;
    out = L::kBackward ? p.dgates_x + L::kG * vector : p.y + vector;
    // so that gate g of a row of dq is where it would be in dgates_x
    out_q = L::kBackward && L::kHasQ ? p.dq + vector - (L::kG - 1) * L::hidden(p) * L::kBytes : nullptr;
  }
  FUSEDRNN_DEVICE void begin(const char* i, const Params&, const Place<I>&) { init = i; }
  FUSEDRNN_DEVICE void wait(int, int) {}

  // Byte offset of this lane's piece of a block in a row; negative: beyond H.
  static FUSEDRNN_DEVICE int piece(const Params& p, int block) {
    const int gate = L::kBackward ? block / kGateBlocks : 0;
    const int unit = (block - gate * kGateBlocks) * L::kBlock + (lane_id() & 3) * (16 / L::kBytes);
    return unit < p.H ? (gate * p.H + unit) * L::kBytes : -1;
  }
  template <int kCount>
  FUSEDRNN_DEVICE void load(uint4 (&f)[kCount][L::kTiles], int chain, int s, int block, const Params& p,
                            const Place<I>& c, const Steps<I>& rows, int q) const {
#pragma unroll
    for (int n = 0; n < L::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) f[i][n] = make_uint4(0, 0, 0, 0);
      // Forward: the state before step q, of rows that have it. Backward: the gradients of step q + 1, of rows that
      // have that.
      if (!rows.active(p, c, chain, n, L::kBackward ? q + 1 : q) || (L::kBackward && s == 0)) continue;
      bool anew = s == 0;
      const char* start = init;
      if constexpr (L::kMasked && !L::kBackward)
        if (Steps<I>::natural_bit(c, rows.cut_now[chain * L::kTiles + n])) anew = true, start = nullptr;
      if (anew && !start) continue;
      const int row = rows.previous(chain, n);
      const char* from = anew ? start + c.edge(p, c.row(chain, n))
                              : out + row_bytes(row, Place<I>::stride(p, L::kBackward ? L::kG : 1));
      const char* from_q = nullptr;
      if constexpr (L::kBackward && L::kHasQ) from_q = out_q + row_bytes(row, Place<I>::stride(p, 1));
      bool complete;
      unsigned looks = 0;
      do {
        complete = true;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const char* source = from;
          if constexpr (L::kBackward && L::kHasQ) source = block + i >= (L::kG - 1) * kGateBlocks ? from_q : from;
          if constexpr (!L::kMasked)
            f[i][n] = ld_l2_16(source + (block + i) * 64 + (lane_id() & 3) * 16);
          else if (const int at = piece(p, block + i); at >= 0)
            f[i][n] = ld_l2_16(source + at);
        }
        if (!anew)
#pragma unroll
          for (int i = 0; i < kCount; ++i)
            complete &= f[i][n].x != ~0u && f[i][n].y != ~0u && f[i][n].z != ~0u && f[i][n].w != ~0u;
        if (!complete) spin(looks);
      } while (!complete);
      if constexpr (L::kBytes == 4)
#pragma unroll
        for (int i = 0; i < kCount; ++i) f[i][n] = to_operands<Element>(f[i][n]);
    }
    warp_sync();
  }
  FUSEDRNN_DEVICE void publish(int, int, int, int, int, const uint32_t (&)[L::kWords]) {
  }  // the store of the output is it
  FUSEDRNN_DEVICE void end() {}
};
}  // namespace fusedrnn::cuda
