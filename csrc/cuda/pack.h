// Computes: W_hh in the order of the weight tiles that the warps keep, and the resets as bits in the order of each
//   row's own steps.
// Mapping: a thread writes the 16 bytes that one lane holds of one tile, or one byte of cuts.
// Memory: reads W_hh once, in pieces of two or more elements; writes it once, contiguous.
// Synchronisation: none.
// Requires: nothing.
#pragma once
#include "cuda/layout.h"

namespace fusedrnn::cuda {
struct WeightIndex {
  int gate, row, column;  // row of the gate
};

// Which element of W_hh [G H, H] is half e of register r of a lane in a weight tile of (rank, warp): forward and
// all-gather backward tile (k_tile, m), scatter (k_tile, m = M-tile of the warp).
template <Instance I>
FUSEDRNN_DEVICE WeightIndex weight_index(int rank, int warp, int k_tile, int m, int lane, int r, int e) {
  using L = Layout<I>;
  constexpr int kPack = L::kPack;
  const int g = lane >> 2, t = lane & 3;
  const int slice = I.exchange == Exchange::scatter ? 0 : warp % L::kSplit * L::kKTiles, tile = slice + k_tile;
  const int k = L::kBlock * (tile / 2) + 4 * kPack * t + 2 * kPack * (tile & 1) + kPack * (r >> 1) + e;
  const int in_tile = row_unit(g) + 2 * (r & 1);
  if constexpr (I.exchange == Exchange::scatter) {
    return {k / I.units, rank * I.units + k % I.units, 16 * L::scatter_tile(rank, warp, m) + in_tile};
  } else {
    const int unit = rank * I.units + 16 * (warp / L::kSplit) + in_tile;
    if constexpr (L::kBackward)
      return {k / I.H, k % I.H, unit};
    else
      return {m, unit, k};
  }
}

// The tiles of a lane follow each other by rank, warp, and then k_tile, m; scatter: m, k_tile.
template <Instance I>
FUSEDRNN_DEVICE void pack_weights(const char* given, char* packed, int H) {
  using L = Layout<I>;
  using Word = typename L::Word;
  constexpr bool kScatter = I.exchange == Exchange::scatter;
  constexpr int kM = kScatter ? L::kProduct.m_tiles : L::kM, kTiles = L::kKTiles * kM;
  constexpr int kBlocks = L::kPackedBlocks;
  const int stream = block_id() / kBlocks, i = block_id() % kBlocks * kPackThreads + thread_id();
  const int lane = i & 31, tile = (i >> 5) % kTiles, warp = (i >> 5) / kTiles % L::kWarps;
  const int rank = (i >> 5) / (kTiles * L::kWarps);
  const int k_tile = kScatter ? tile % L::kKTiles : tile / kM, m = kScatter ? tile / L::kKTiles : tile % kM;
  const Word* const w = reinterpret_cast<const Word*>(given) + static_cast<size_t>(stream) * L::kG * H * H;
  Word* const to = reinterpret_cast<Word*>(packed) + static_cast<size_t>(stream) * L::kG * I.H * I.H +
                   static_cast<size_t>(i) * 4 * L::kPack;
  for (int j = 0; j < 4 * L::kPack; ++j) {
    const WeightIndex x = weight_index<I>(rank, warp, k_tile, m, lane, j / L::kPack, j % L::kPack);
    const bool real = x.row < H && x.column < H;  // zero weights keep the units beyond H zero for ever
    to[j] = real ? operand<typename L::Element>(load_global(w + static_cast<size_t>(x.gate * H + x.row) * H + x.column))
                 : 0;
  }
}

FUSEDRNN_DEVICE int row_length(const int64_t* lengths, int64_t at, int T) {
  const int64_t length = lengths ? load_global(lengths + at) : T;
  return length < 0 ? 0 : length < T ? static_cast<int>(length) : T;
}

// Bit r of byte (q, tile) of a stream: row r of the tile of 8 starts anew before its own step q. A reset at t
// separates t - 1 from t: forward in time it cuts before the step of t, backward in time before the step of t - 1.
template <int = 0>
FUSEDRNN_KERNEL(kPackThreads)
pack_cuts(const CutsParams p) {
  const int64_t i = static_cast<int64_t>(block_id()) * kPackThreads + thread_id();
  const int64_t per_stream = static_cast<int64_t>(p.T + 2) * p.tiles;
  if (i >= per_stream * p.S) return;
  const int s = static_cast<int>(i / per_stream), tile = static_cast<int>(i % p.tiles);
  const int q = static_cast<int>(i % per_stream / p.tiles);
  const bool backwards = s % p.directions == 1;
  uint32_t bits = 0;
  for (int r = 0; r < 8; ++r) {
    const int row = 8 * tile + r;
    if (row >= p.B) break;
    const int length = row_length(p.lengths, s * p.length_s + row * p.length_b, p.T);
    if (q >= length || (backwards && q == 0)) continue;
    const int64_t t = backwards ? length - q : q;
    bits |= static_cast<uint32_t>(load_global(p.reset + t * p.reset_t + row * p.reset_b + s * p.reset_s)) << r;
  }
  store_global(p.cuts + i, static_cast<uint8_t>(bits));
}

// Fills every real row of an output whose rows lie packed with ones: only the device knows how many they are.
template <int = 0>
FUSEDRNN_KERNEL(kPackThreads)
fill_rows(const FillParams p) {
  const int64_t i = static_cast<int64_t>(block_id()) * kPackThreads + thread_id();
  const int64_t pieces = p.row_bytes / 16, row = i / pieces, s = row % p.S, b = row / p.S % p.B, t = row / p.S / p.B;
  if (t >= p.T || t >= row_length(p.lengths, s * p.length_s + b * p.length_b, p.T)) return;
  char* const to = p.output + ((p.offsets[t] + b) * p.S + s) * p.row_bytes + i % pieces * 16;
  st16_if(to, make_uint4(~0u, ~0u, ~0u, ~0u), true);
}
}  // namespace fusedrnn::cuda
