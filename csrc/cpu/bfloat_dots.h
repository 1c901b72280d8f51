// Computes: C = init + A W^T of bfloat16 summed in float, for calls of few rows: W is read as it lies, because packing it
//   costs more than reading it a few times.
// Mapping: as in dots.h: a sum for each of 16 units and up to 4 rows, pairs of K in lanes, then one sum across lanes each.
// Memory: A lies in tiles (tiles.h); W's rows are read in turn, 8 to 4 at once.
#pragma once
#include "cpu/tiles.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
struct BfloatDots {
  float* c;
  int64_t ldc;
  const float* init;  // one row for all
  const char* a;      // the first row's place in the first tile of K; rows follow each other
  const Bfloat* w;    // the first unit's row
  int64_t units, K;   // units beyond these are 0 but for `init`
};

template <int R>
__attribute__((noinline)) void bfloat_dots_block(const BfloatDots& d) {
  using V = Vec<float>;
  constexpr int W = V::lanes, U = R == 1 ? 8 : 4;
  V sums[R][W];
  for (int u = 0; u < W; u += U) {
    V acc[R][U];
    const Bfloat* w[U];
#pragma GCC unroll 8
    for (int j = 0; j < U; j++) {
      w[j] = d.w + (u + j < d.units ? u + j : 0) * d.K;
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) acc[i][j] = V(0.f);
    }
    const char* a = d.a;
    for (int64_t k = 0; k < d.K; k += kTileK, a += kTileBytes) {
      const __mmask32 mask = first_values(d.K - k);
#pragma GCC unroll 8
      for (int j = 0; j < U; j++) {
        const __m512i col = _mm512_maskz_loadu_epi16(mask, w[j] + k);
#pragma GCC unroll 4
        for (int i = 0; i < R; i++)
          acc[i][j] = V(V::Raw(_mm512_dpbf16_ps(acc[i][j].v, (__m512bh)_mm512_load_si512(a + i * 64), (__m512bh)col)));
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < U; j++)
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) sums[i][u + j] = u + j < d.units ? acc[i][j] : V(0.f);
  }
  for (int i = 0; i < R; i++) (sum_lanes(sums[i]) + V::load(d.init)).store(d.c + i * d.ldc);
}

inline void bfloat_dots(BfloatDots d, int64_t rows) {
  static constexpr void (*block[])(const BfloatDots&) = {nullptr, bfloat_dots_block<1>, bfloat_dots_block<2>,
                                                         bfloat_dots_block<3>, bfloat_dots_block<4>};
  for (int64_t r = 0; r < rows; r += 4, d.a += 4 * 64, d.c += 4 * d.ldc) block[at_most(4, rows - r)](d);
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
