// Computes: C = init + A B, of bfloat16 summed in float, by AMX: eight tile registers of 16 rows of 64 bytes each.
// Mapping: a tile of A is [16 rows][32 of K], of B [16 pairs of K][16 columns][2], of C [16 rows][16 columns] of float.
//   Tiles 0 to 6 hold sums and then rows, tile 7 columns: one configuration for every block.
// Memory: tiles of A and B lie dense, 1 KiB each.
// Requires: AMX, granted by the system. As inline assembly, because the compilers' macros want literal register numbers.
#pragma once
#include "cpu/layout.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
constexpr int64_t kTileHeight = 16, kTileK = 32, kTileBytes = 1024;

template <int tile>
FUSEDRNN_INLINE void tile_load(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(tile) : "memory");
}
template <int tile>
FUSEDRNN_INLINE void tile_store(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(tile) : "memory");
}
template <int sum, int a, int b>
FUSEDRNN_INLINE void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}

// From here on tiles of A and C have so many rows. Leaving it clears the tiles: a thread that keeps them switches slowly.
inline void configure_tiles(int64_t rows) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {1, 0, {}, {}, {}};
  for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = uint8_t(i < 7 ? rows : kTileHeight);
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

struct TileProduct {
  float* c;
  int64_t ldc, rows;  // rows: of a tile
  const float* init;  // one row for all
  const char* a;      // row tiles, each K / 32 tiles that follow each other
  const char* b;      // [K / 32][cols] tiles
  int64_t k_tiles, cols;
  int64_t left = cols;  // columns still to do
};

// R x C tiles of C, from the first of `p`, and of K the tiles from k0 to k1: sums stay in their tiles between calls.
template <int R, int C>
__attribute__((noinline)) void tile_block(const TileProduct& p, int64_t k0, int64_t k1) {
  constexpr int kRow = R * C, kCol = 7;
  static_assert(kRow + R <= kCol);
  const auto each = [](auto n, auto&& body) __attribute__((always_inline)) {
    [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      (body(std::integral_constant<int, i>{}), ...);
    }(std::make_integer_sequence<int, n>());
  };
  const std::integral_constant<int, R * C> sums;
  const std::integral_constant<int, C> cols;
  if (k0 == 0)
    each(sums, [&](auto i) __attribute__((always_inline)) { tile_load<i>(p.init + i % C * kTileHeight, 0); });
  const int64_t next_row = p.k_tiles * kTileBytes, next_k = p.cols * kTileBytes;
  const char *a = p.a + k0 * kTileBytes, *b = p.b + k0 * next_k;
  for (int64_t k = k0; k < k1; k++, a += kTileBytes, b += next_k)
    each(cols, [&](auto c) __attribute__((always_inline)) {
      tile_load<kCol>(b + c * kTileBytes, 64);
      if constexpr (c == 0) tile_load<kRow>(a, 64);
      tile_multiply_add<c, kRow, kCol>();
      if constexpr (R == 2) {
        if constexpr (c == 0) tile_load<kRow + 1>(a + next_row, 64);
        tile_multiply_add<C + c, kRow + 1, kCol>();
      }
    });
  if (k1 == p.k_tiles)
    each(sums, [&](auto i) __attribute__((always_inline)) {
      tile_store<i>(p.c + i / C * p.rows * p.ldc + i % C * kTileHeight, p.ldc * 4);
    });
}

// A product of one row tile or two with up to four columns, done bit by bit: in the midst of vector instructions the
// tiles' own unit has something to do.
struct TileWork {
  TileProduct p;
  int64_t row_tiles, k = 0, done = 0, steps;
  TileWork(const TileProduct& product, int64_t row_tiles_)
      : p(product), row_tiles(row_tiles_), steps(p.k_tiles * ceil_div(p.cols, most())) {}
  int64_t most() const { return row_tiles == 2 ? 2 : 4; }  // columns at once: so many sums and rows have room
  // Until this part of it is done.
  void reach(int64_t part, int64_t whole) {
    for (const int64_t wanted = steps * part / whole; done < wanted;) {
      const int64_t cols = at_most(p.left, most()), end = at_most(p.k_tiles, k + wanted - done);
      static constexpr void (*block[2][5])(const TileProduct&, int64_t, int64_t) = {
          {nullptr, tile_block<1, 1>, tile_block<1, 2>, tile_block<1, 3>, tile_block<1, 4>},
          {nullptr, tile_block<2, 1>, tile_block<2, 2>, nullptr, nullptr}};
      block[row_tiles - 1][cols](p, k, end);
      done += end - k, k = end;
      if (k < p.k_tiles) continue;
      k = 0;
      p.c += cols * kTileHeight, p.init += cols * kTileHeight, p.b += cols * kTileBytes;
      p.left -= cols;
    }
  }
  void finish() { reach(1, 1); }
};

inline __mmask32 first_values(int64_t k_left) {
  return k_left >= kTileK ? ~__mmask32(0) : (__mmask32(1) << k_left) - 1;
}
// A tile of B from 16 columns of K values each: `src` is the first column's, n columns and k_left values are there, the
// rest is filled with zeros.
inline void pack_tile(char* to, const Bfloat* src, int64_t ld, int64_t n, int64_t k_left) {
  using V = Vec<float>;
  const __mmask32 mask = first_values(k_left);
  V r[kTileHeight];
#pragma GCC unroll 16
  for (int j = 0; j < kTileHeight; j++) r[j] = j < n ? V(V::Raw(_mm512_maskz_loadu_epi16(mask, src + j * ld))) : V(0.f);
  transpose(r);
#pragma GCC unroll 16
  for (int j = 0; j < kTileHeight; j++) r[j].store((float*)to + j * kTileHeight);
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
