// Computes: the product of one time step, for the units and batch rows of one CTA.
//   forward:  sums[gate][row][unit] = sum over k of source[row][k] W[gate H + unit][k]      (source: h)
//   backward: sums[row][unit] = sum over gate, k of source[gate][row][k] W[gate H + k][unit]  (source: gate gradients)
// Mapping: 16-bit and tf32: tensor cores. Gate rows (backward: units) are M, batch rows N. The warps deal the blocks of
//   k among themselves, so that many loads are in flight; their partial sums are added by the reader, in order.
//   fp32 and fp64: multiply-adds from tiles in shared memory; a thread has one unit, all gates, and some rows.
// Memory: both operands are read in their natural layout, 16 bytes a lane. A lane's 16 bytes feed two products: k is
//   taken in another order than it lies in, the same one for both operands. Backward, the units are reordered too.
// Synchronisation: ends with a CTA barrier before the sums may be read, which the caller makes.
// Requires: H a multiple of 8. Units and k beyond H are read as zeros; a row without a source likewise.
#pragma once
#include "cuda/step_layout.h"

namespace fusedrnn::cuda {
template <class P, class C, Pass kPass>
struct TensorProduct {
  using Tile = StepTile<P, C, kPass>;
  using Stored = typename Tile::Stored;
  static constexpr bool kForward = Tile::kForward;
  static constexpr int kTiles = kForward ? C::kGates : 2;  // of 16 rows of M
  static constexpr int kLane = 16 / int(sizeof(Stored));   // elements of k, or of units, that a lane loads at once
  static constexpr int kBlock = 4 * kLane, kColumns = kTileRows / 8;

  // What the two products of a block of k need: weights[q] are the words of the tiles' eight-row halves for the q-th
  // quarter of the block.
  struct Operands {
    uint32_t weights[4][2 * kTiles], source[kColumns][4];
  };

  static FUSEDRNN_DEVICE void load(Operands& to, const Stored* w, const Tile& tile, int item) {
    const int H = int(tile.H), unit0 = int(tile.unit0), blocks = (H + kBlock - 1) / kBlock;
    const int group = lane_id() >> 2, four = lane_id() & 3;
    const int gate = item / blocks, k0 = item % blocks * kBlock, k = k0 + kLane * four;
    const bool valid = gate < Tile::kProductGates;
    for (int i = 0; i < kColumns; i++) {
      const Stored* const row = valid ? tile.source(gate, 8 * i + group) : nullptr;
      set(to.source[i], ld16_if(row + k, row && k < H));
    }
    if constexpr (kForward) {
      for (int half = 0; half < 2 * kTiles; half++) {
        const int unit = unit0 + 8 * (half & 1) + group;
        uint32_t words[4];
        set(words, ld16_if(w + (int64_t(half / 2) * H + unit) * H + k, valid && unit < H && k < H));
        for (int q = 0; q < 4; q++) to.weights[q][half] = words[q];
      }
    } else {
      for (int q = 0; q < 4; q++) {
        // 16 bit: row 8 (group / 2) + group % 2 of each quarter, to be transposed. 32 bit: already where it must be.
        const int row = k0 + (P::PACK == 2 ? 8 * (group >> 1) + (group & 1) + 2 * q : 4 * four + q);
        const int unit = unit0 + kLane * (P::PACK == 2 ? four : group);
        set(to.weights[q], ld16_if(w + (int64_t(gate) * H + row) * H + unit, valid && row < H && unit < H));
      }
    }
  }

  static FUSEDRNN_DEVICE void multiply(float (&sums)[kTiles][kColumns][4], Operands& from, int columns) {
    for (int q = 0; q < 4; q++) {
      for (int half = 0; half < 2 * kTiles; half++) {
        uint32_t& word = from.weights[q][half];
        word = !kForward && P::PACK == 2 ? movmatrix(word) : operand<P>(word);
      }
      for (int i = 0; i < kColumns; i++) from.source[i][q] = operand<P>(from.source[i][q]);
    }
    for (int q = 0; q < 4; q += 2)
      for (int tile = 0; tile < kTiles; tile++) {
        const uint32_t *low = from.weights[q] + 2 * tile, *high = from.weights[q + 1] + 2 * tile;
        const uint4 a = make_uint4(low[0], low[1], high[0], high[1]);
        for (int i = 0; i < kColumns; i++)
          if (i < columns) mma<P>(sums[tile][i], a, from.source[i][q], from.source[i][q + 1]);
      }
  }

  static FUSEDRNN_DEVICE void run(const Stored* w, const Tile& tile) {
    const int columns = (tile.rows + 7) / 8, items = (int(tile.H) + kBlock - 1) / kBlock * Tile::kProductGates;
    float sums[kTiles][kColumns][4] = {};
    Operands next;
    load(next, w, tile, warp_id());
    for (int item = warp_id(); item < items; item += kStepWarps) {
      Operands now = next;
      load(next, w, tile, item + kStepWarps);  // in flight while this block is multiplied
      multiply(sums, now, columns);
    }
    const int group = lane_id() >> 2, four = lane_id() & 3;
    float* const out = Tile::sums();
    for (int m = 0; m < kTiles; m++)
      for (int i = 0; i < kColumns; i++)
        for (int e = 0; e < 4; e++) {
          const int half = e >> 1, word = 2 * m + half;
          const int unit = kForward       ? 8 * half + group
                           : P::PACK == 2 ? 8 * (group >> 1) + 2 * word + (group & 1)
                                          : 4 * group + word;
          out[Tile::sum(warp_id(), kForward ? m : 0, 8 * i + 2 * four + (e & 1), unit)] = sums[m][i][e];
        }
  }

 private:
  static FUSEDRNN_DEVICE void set(uint32_t (&to)[4], uint4 v) { to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w; }
};

template <class P, class C, Pass kPass>
struct PlainProduct {
  using Tile = StepTile<P, C, kPass>;
  using Number = typename Tile::Number;
  using Stored = typename Tile::Stored;
  static constexpr bool kForward = Tile::kForward;
  static constexpr int kUnits = Tile::kUnits, kSums = Tile::kSums, kChunk = Tile::kChunk, kStride = Tile::kChunkStride;
  static constexpr int kRowStep = kStepThreads / kUnits, kRows = kTileRows / kRowStep;  // a thread's rows
  static constexpr int kWeights = kSums * kUnits * kChunk / kStepThreads, kInputs = kTileRows * kChunk / kStepThreads;
  struct alignas(16) Four {
    Number of[4];
  };

  // What one thread brings of a chunk of k: numbers thread_id() + i kStepThreads of both operands.
  struct Fetched {
    Number weights[kWeights], inputs[kInputs];
  };

  static FUSEDRNN_DEVICE void fetch(Fetched& to, const Stored* w, const Tile& tile, int64_t chunk) {
    const int64_t H = tile.H, chunks = (H + kChunk - 1) / kChunk;
    const int gate = int(chunk / chunks);
    const int64_t k0 = chunk % chunks * kChunk;
    const bool valid = gate < Tile::kProductGates;
    for (int i = 0; i < kWeights; i++) {
      const int n = thread_id() + i * kStepThreads, m = weight_row(n);
      const int64_t unit = tile.unit0 + m % kUnits, k = k0 + weight_k(n);
      const int64_t at = kForward ? (m / kUnits * H + unit) * H + k : (gate * H + k) * H + unit;
      to.weights[i] = valid && unit < H && k < H ? load_global(w + at) : Number(0);
    }
    for (int i = 0; i < kInputs; i++) {
      const int n = thread_id() + i * kStepThreads;
      const int64_t k = k0 + n % kChunk;
      const Stored* const row = valid && k < H ? tile.source(gate, n / kChunk) : nullptr;
      to.inputs[i] = row ? load_global(row + k) : Number(0);
    }
  }

  static FUSEDRNN_DEVICE void run(const Stored* w, const Tile& tile) {
    Number* const weights = Tile::stage();                      // [gate, unit][k]
    Number* const inputs = weights + kSums * kUnits * kStride;  // [row][k]
    const int unit = thread_id() % kUnits, row = thread_id() / kUnits;
    const int64_t chunks = (tile.H + kChunk - 1) / kChunk * Tile::kProductGates;
    Number sums[kSums][kRows] = {};
    Fetched next;
    fetch(next, w, tile, 0);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      for (int i = 0; i < kWeights; i++) {
        const int n = thread_id() + i * kStepThreads;
        weights[weight_row(n) * kStride + weight_k(n)] = next.weights[i];
      }
      for (int i = 0; i < kInputs; i++) {
        const int n = thread_id() + i * kStepThreads;
        inputs[n / kChunk * kStride + n % kChunk] = next.inputs[i];
      }
      cta_sync();
      fetch(next, w, tile, chunk + 1);  // in flight while this chunk is multiplied
      Number part[kSums][kRows] = {};   // a chunk apart: the sum of a long row loses less
      for (int k = 0; k < kChunk; k += 4) {
        Four x[kRows];
        for (int i = 0; i < kRows; i++)
          x[i] = *reinterpret_cast<const Four*>(inputs + (row + i * kRowStep) * kStride + k);
        for (int g = 0; g < kSums; g++) {
          const Four a = *reinterpret_cast<const Four*>(weights + (g * kUnits + unit) * kStride + k);
          for (int i = 0; i < kRows; i++)
            if (i * kRowStep < tile.rows)
              for (int e = 0; e < 4; e++) part[g][i] = multiply_add(a.of[e], x[i].of[e], part[g][i]);
        }
      }
      for (int g = 0; g < kSums; g++)
        for (int i = 0; i < kRows; i++) sums[g][i] += part[g][i];
      cta_sync();  // the chunk is about to be overwritten
    }
    for (int g = 0; g < kSums; g++)
      for (int i = 0; i < kRows; i++) Tile::sums()[Tile::sum(0, g, row + i * kRowStep, unit)] = sums[g][i];
  }

 private:
  // Number n of the staged weights: neighbours in n are neighbours in memory.
  static FUSEDRNN_DEVICE int weight_row(int n) { return kForward ? n / kChunk : n % kUnits; }
  static FUSEDRNN_DEVICE int weight_k(int n) { return kForward ? n % kChunk : n / kUnits; }
};
}  // namespace fusedrnn::cuda
