// Where every element of the recurrence lives in a kernel of an instance.
//
// One CTA owns `units` hidden units of a layer; team() CTAs (one CTA, a cluster, or a part of the grid) share the
// batch rows of a group. The product is out[m] = sum_k A[m][k] v[k], the weights being the stationary A operand of
// mma, the exchanged vector v the B operand (8 batch rows a tile).
//   forward:  v = h (K = H), G sums a unit: all gates of a unit meet in one thread
//   backward: v = gates' gradients (K = G H), one sum a unit
// Lane (g, t) = (lane / 4, lane % 4) of a warp computes the units unit0 + row_unit(g) + {0, 2} of the batch columns 2t,
// 2t + 1. row_unit and the order of k inside a 64-byte block are chosen so that, after one transposition, a lane holds
// four consecutive units of one batch row, and that one 16-byte load of consecutive elements of v feeds two k-tiles. So
// vectors keep their natural row-major order everywhere.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/footprint.h"
#include "cuda/params.h"
#include "cuda/value.h"

namespace fusedrnn::cuda {
template <Precision>
struct ElementOf;
template <>
struct ElementOf<Precision::bf16> : Bf16 {
  using Type = Bf16;
  using Word = uint16_t;
};
template <>
struct ElementOf<Precision::fp16> : Fp16 {
  using Type = Fp16;
  using Word = uint16_t;
};
template <>
struct ElementOf<Precision::tf32> : Tf32 {
  using Type = Tf32;
  using Word = uint32_t;
};
template <>
struct ElementOf<Precision::fp32> : Fp32 {
  using Type = Fp32;
  using Word = uint32_t;
};

template <int cell>
struct CellOf {
  using Type = Rnn<cell == kRnnRelu>;
};
template <>
struct CellOf<kGru> {
  using Type = Gru;
};
template <>
struct CellOf<kLstm> {
  using Type = Lstm;
};

FUSEDRNN_DEVICE constexpr int row_unit(int g) { return 4 * (g >> 1) + (g & 1); }  // + 2 for rows 8 .. 15

template <Instance I>
struct Layout {
  using Element = typename ElementOf<I.precision>::Type;
  using Word = typename ElementOf<I.precision>::Word;
  using Cell = typename CellOf<I.cell>::Type;
  using V = Value<Element>;
  static constexpr bool kBackward = I.pass == Pass::backward, kMasked = I.masked;
  static constexpr bool kGrid = I.exchange == Exchange::grid || I.exchange == Exchange::split;
  static constexpr int kG = Cell::kGates, kZ = Cell::kKept;
  static constexpr bool kHasQ = Cell::kParts > kG, kHasC = Cell::kHasC;  // q: the GRU's n keeps its halves apart
  static constexpr int kTeam = I.team(), kUnitTiles = I.units / 16, kWarps = I.warps(), kThreads = I.threads();
  static constexpr int kTiles = I.rows / 8, kChains = I.chains, kGroupRows = I.group_rows(), kSplit = I.k_split;
  static constexpr int kHalves = kSplit == 1 ? 2 : 1;  // row halves of a unit tile that one warp finishes
  static constexpr int kPack = Element::PACK, kBytes = 4 / kPack;
  static constexpr int kBlock = 16 * kPack;  // elements of k in a block of 64 bytes: two k-tiles
  static constexpr int kPair = 2 / kPack;    // words of two elements
  static constexpr int kWords = kHalves * kPair;

  static constexpr Footprint kProduct = footprint(I);
  static constexpr int kM = kProduct.m_sums, kK = kProduct.k, kKTiles = kProduct.k_tiles;
  static constexpr int kKRegisters = kProduct.registers / kM;  // scatter: weight tiles; else k-tiles
  static constexpr int kWeightsSmem = kProduct.weights_smem();
  static constexpr int kSums = kSplit == 1 ? 0 : kChains * kUnitTiles * 2 * kSplit * kM * kTiles * 256;  // bytes
  static constexpr int kSmemBytes = smem_bytes(I), kPackedBlocks = packed_blocks(I);                     // of a stream
  static_assert(I.H % 32 == 0 && I.H % I.units == 0 && I.units % 16 == 0 && I.rows % 8 == 0 && kThreads <= 1024);
  static_assert(kSplit == 1 || kSplit == 2 || kSplit == 4 || kSplit == 8);
  static_assert(I.exchange == Exchange::scatter || kK % (kBlock * kSplit) == 0);
  static_assert(!kGrid || I.H % kBlock == 0);  // a block has one gate

  static FUSEDRNN_DEVICE int hidden(const Params& p) { return kMasked ? p.H : I.H; }
  // The part of the pre-activations' gradients that multiplies gate g of W_hh.
  static FUSEDRNN_DEVICE constexpr int recurrent_part(int g) { return kHasQ && g == kG - 1 ? kG : g; }
  // Scatter: the i-th tile of units of a warp. Every CTA starts with its own units, so the CTAs send to different peers
  // at any time.
  static FUSEDRNN_DEVICE int scatter_tile(int rank, int warp, int i) {
    return (i * kWarps + warp + rank * kUnitTiles) % (I.H / 16);
  }
};

// What this warp and lane are responsible for.
template <Instance I>
struct Place {
  using L = Layout<I>;
  int stream, group, rank, unit_tile, slice, lane, unit0, half, row0;  // row0: first batch row of the group
  bool backwards;                                                      // in time

  FUSEDRNN_DEVICE Place(const Params& p, int rank_) : rank(rank_) {
    const int team = block_id() / L::kTeam + p.first_team;
    stream = team / p.groups;
    group = team % p.groups;
    backwards = stream % p.directions == 1;
    lane = lane_id();
    unit_tile = warp_id() / L::kSplit;
    slice = warp_id() % L::kSplit;
    unit0 = rank * I.units + unit_tile * 16;
    half = L::kSplit == 1 ? 0 : slice & 1;
    row0 = group * L::kGroupRows;
  }
  // Warps with slice < 2 add up the slices of k, each for a row half, and do the pointwise work.
  FUSEDRNN_DEVICE bool finisher() const { return L::kSplit <= 2 || slice < 2; }
  FUSEDRNN_DEVICE int row(int chain, int tile) const { return row0 + chain * I.rows + tile * 8 + (lane >> 2); }
  FUSEDRNN_DEVICE int unit() const {
    return unit0 + 4 * (lane & 3) + 2 * half;
  }  // first of this lane's units, natural order
  // Bytes: of row `row` in an array [S, B, H], and of this lane's units in it.
  FUSEDRNN_DEVICE ptrdiff_t edge(const Params& p, int row) const {
    return (static_cast<ptrdiff_t>(stream) * p.B + row) * L::hidden(p) * L::kBytes;
  }
  FUSEDRNN_DEVICE ptrdiff_t edge(const Params& p, int chain, int tile) const {
    return edge(p, row(chain, tile)) + unit() * L::kBytes;
  }
  // This lane's units of row 0 of the stream in an array [T, B, S, vectors H], and bytes from row to row there.
  template <class Char>
  FUSEDRNN_DEVICE Char* sequence(const Params& p, Char* base, int vectors) const {
    return base + (static_cast<ptrdiff_t>(stream) * vectors * L::hidden(p) + unit()) * L::kBytes;
  }
  static FUSEDRNN_DEVICE int stride(const Params& p, int vectors) { return p.S * vectors * L::hidden(p) * L::kBytes; }
};
FUSEDRNN_DEVICE ptrdiff_t row_bytes(int row, int stride) {
  return static_cast<ptrdiff_t>(row) * stride;
}  // one IMAD.WIDE
}  // namespace fusedrnn::cuda
