// Computes: C[rows, W units] = init + A[rows, K] * w[units, K]^T, as gemm.h does, from a weight as it lies.
// Mapping: every output is a dot product along K, in lanes; W of them, of one row, are summed across lanes at the end
//   in log2(W) exchanges.
// For: calls of so few rows in all that packing the weights would cost more than their product.
#pragma once
#include "cpu/vec.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
template <class T>
struct Dots {
  T* c;
  int64_t ldc;
  const T* init;  // ldi = 0 for one row for all
  int64_t ldi;
  const T* const* a;  // rows of A
  const T* w;         // [units][K]
  int64_t units, K;   // outputs from `units` on are 0, and `init` counts there too
};

template <class T, int R>
__attribute__((noinline)) void dots_block(const Dots<T>& d) {
  using V = Vec<T>;
  constexpr int W = V::lanes;
  // 8 sums at once hide the FMA latency; 16 halve the loads per product, where there are registers for them.
  constexpr int most = R == 1 ? 8 : R == 2 ? 4 : kRegisters == 32 ? 4 : 2, U = most < W ? most : W;
  V sums[R][W];
  for (int u = 0; u < W; u += U) {
    V acc[R][U];
    const T* w[U];
#pragma GCC unroll 8
    for (int j = 0; j < U; j++) {
      w[j] = d.w + (u + j < d.units ? u + j : 0) * d.K;
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) acc[i][j] = V(T(0));
    }
    auto step = [&](int64_t k, int64_t n) __attribute__((always_inline)) {
      V row[R];
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) row[i] = V::load(d.a[i] + k, n);
#pragma GCC unroll 8
      for (int j = 0; j < U; j++) {
        const V col = V::load(w[j] + k, n);
#pragma GCC unroll 4
        for (int i = 0; i < R; i++) acc[i][j] = multiply_add(row[i], col, acc[i][j]);
      }
    };
    int64_t k = 0;
    for (; k + W <= d.K; k += W) step(k, W);
    if (k < d.K) step(k, d.K - k);
#pragma GCC unroll 8
    for (int j = 0; j < U; j++)
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) sums[i][u + j] = u + j < d.units ? acc[i][j] : V(T(0));
  }
  for (int i = 0; i < R; i++) (sum_lanes(sums[i]) + V::load(d.init + i * d.ldi)).store(d.c + i * d.ldc);
}

template <class T>
void dots(Dots<T> d, int64_t rows) {
  using Block = void (*)(const Dots<T>&);
  static constexpr Block block[] = {nullptr, dots_block<T, 1>, dots_block<T, 2>, dots_block<T, 3>, dots_block<T, 4>};
  for (int64_t r = 0; r < rows; r += 4) {
    block[rows - r < 4 ? rows - r : 4](d);
    d.a += 4;
    d.c += 4 * d.ldc;
    d.init += 4 * d.ldi;
  }
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
