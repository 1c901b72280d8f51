// Computes: C = init + A B, of bfloat16 summed in float, by AMX: eight tile registers of 16 rows of 64 bytes each.
// Mapping: a tile of A is [16 rows][32 of K], of B [16 pairs of K][16 columns][2], of C [16 rows][16 columns] of float.
//   Tiles 0 to 6 hold sums and then rows, tile 7 columns: one configuration for every block.
// Memory: tiles of A and B lie dense, 1 KiB each.
// Requires: AMX, granted by the system. As inline assembly, because the compilers' macros want literal register numbers.
#pragma once
#include "cpu/kernel.h"
#include "cpu/vec.h"

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
};

// R x C tiles of C, from the first of `p`.
template <int R, int C>
__attribute__((noinline)) void tile_block(const TileProduct& p) {
  constexpr bool kHoldsRows = R * C + R <= 7;  // else a tile of A is loaded anew for every column
  constexpr int kRow = R * C, kCol = 7;
  const int64_t next_row = p.k_tiles * kTileBytes, next_k = p.cols * kTileBytes;
  const auto each = [](auto&& body) __attribute__((always_inline)) {
    [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      (body(std::integral_constant<int, i / C>{}, std::integral_constant<int, i % C>{}), ...);
    }(std::make_integer_sequence<int, R * C>());
  };
  each([&](auto r, auto c) __attribute__((always_inline)) { tile_load<r * C + c>(p.init + c * kTileHeight, 0); });
  const char *a = p.a, *b = p.b;
  for (int64_t k = 0; k < p.k_tiles; k++, a += kTileBytes, b += next_k) {
    const auto column = [&](auto c) __attribute__((always_inline)) {
      tile_load<kCol>(b + c * kTileBytes, 64);
      if constexpr (!kHoldsRows || c == 0) tile_load<kRow>(a, 64);
      tile_multiply_add<c, kRow, kCol>();
      if constexpr (R == 2) {
        constexpr int kSecond = kHoldsRows ? kRow + 1 : kRow;
        if constexpr (!kHoldsRows || c == 0) tile_load<kSecond>(a + next_row, 64);
        tile_multiply_add<C + c, kSecond, kCol>();
      }
    };
    [&]<int... c>(std::integer_sequence<int, c...>) __attribute__((always_inline)) {
      (column(std::integral_constant<int, c>{}), ...);
    }(std::make_integer_sequence<int, C>());
  }
  each([&](auto r, auto c) __attribute__((always_inline)) {
    tile_store<r * C + c>(p.c + r * p.rows * p.ldc + c * kTileHeight, p.ldc * 4);
  });
}

// All columns, 1 to 4 of them, of one row tile or of two.
inline void tile_product(TileProduct p, int64_t row_tiles) {
  const auto block = [&](auto c) { row_tiles == 2 ? tile_block<2, c>(p) : tile_block<1, c>(p); };
  switch (p.cols) {
    case 1:
      return block(std::integral_constant<int, 1>{});
    case 2:
      return block(std::integral_constant<int, 2>{});
    case 3:
      return block(std::integral_constant<int, 3>{});
    default:
      for (int64_t c = 0; c < 4; c += 2) {
        block(std::integral_constant<int, 2>{});
        p.c += 2 * kTileHeight, p.init += 2 * kTileHeight, p.b += 2 * kTileBytes;
      }
  }
}

// A tile of B from 16 columns of K values each: `src` is the first column's, n columns and k_left values are there, the
// rest is filled with zeros.
inline void pack_tile(char* to, const Bfloat* src, int64_t ld, int64_t n, int64_t k_left) {
  using V = Vec<float>;
  const __mmask32 mask = k_left >= kTileK ? ~__mmask32(0) : (__mmask32(1) << k_left) - 1;
  V r[kTileHeight];
#pragma GCC unroll 16
  for (int j = 0; j < kTileHeight; j++)
    r[j] = j < n ? V(V::Raw(_mm512_maskz_loadu_epi16(mask, src + j * ld))) : V(0.f);
  transpose(r);
#pragma GCC unroll 16
  for (int j = 0; j < kTileHeight; j++) r[j].store((float*)to + j * kTileHeight);
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
