// What a CTA of an instance holds: tiles of its product, weights in registers and in shared memory, bytes of shared
// memory. The kernels' layout, as numbers for the planner. No CUDA.
#pragma once
#include "cuda/instance.h"

namespace fusedrnn::cuda {
struct Footprint {
  int k, k_tiles;        // depth of a CTA's product; its tiles in one warp
  int m_sums;            // sums a unit: gates forward, one backward
  int m_tiles;           // scatter: tiles of 16 units of the whole H in one warp; else 1
  int warps, registers;  // registers: tiles of weights that a warp keeps there

  constexpr int warp_tiles() const { return k_tiles * m_sums * m_tiles; }
  constexpr int weight_tiles() const { return warps * warp_tiles(); }
  constexpr int weights_smem() const { return warps * (warp_tiles() - registers) * 512; }  // a tile has 512 bytes
};

constexpr Footprint footprint(const Instance& i) {
  const int gates = kGatesOf[i.cell], tile = 32 / element_bytes(i.precision), warps = i.warps();
  const auto least = [](int a, int b) { return a < b ? a : b; };
  if (i.exchange == Exchange::scatter) {
    const int k = gates * i.units, k_tiles = k / tile, m_tiles = i.H / 16 / warps;
    return {k, k_tiles, 1, m_tiles, warps, least(i.k_registers, k_tiles * m_tiles)};
  }
  const bool forward = i.pass == Pass::forward;
  const int k = forward ? i.H : gates * i.H, k_tiles = k / tile / i.k_split, m_sums = forward ? gates : 1;
  return {k, k_tiles, m_sums, 1, warps, least(i.k_registers, k_tiles) * m_sums};
}

// Grid: blocks of two k-tiles that a warp polls at once, all in registers; a divisor of what it has. More are one trip
// through L2 less; with several chains one's trip hides the others'.
constexpr int grid_chunk(const Instance& i) {
  const int blocks = footprint(i).k_tiles / 2;
  int chunk = i.chains > 1 || blocks > 16 ? 12 : 16;
  while (blocks % chunk) chunk--;
  return chunk;
}

constexpr int smem_bytes(const Instance& i) {
  const Footprint f = footprint(i);
  const int tiles = i.rows / 8, vector = 2 * i.chains * f.k * i.rows * element_bytes(i.precision);
  const int sums = i.units / 16 * i.k_split * f.m_sums * tiles;  // tiles of partial sums, two halves of 256 bytes each
  switch (i.exchange) {
    case Exchange::scatter:
      return f.weights_smem() + 2 * i.chains * i.H * i.rows * 4 + vector + 16 * i.chains;
    case Exchange::split:
      return f.weights_smem() + 2 * i.chains * sums * 512 + 16 * i.chains;
    default: {
      const bool grid = i.exchange == Exchange::grid;  // its vector stays in L2; its partial sums have two buffers
      const int red = i.k_split == 1 ? 0 : i.chains * sums * 512 * (grid ? 2 : 1);
      return red + f.weights_smem() + (grid ? 0 : vector) + 64;
    }
  }
}
}  // namespace fusedrnn::cuda
