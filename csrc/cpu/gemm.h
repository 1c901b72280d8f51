// Computes: C[rows, cols] = init + A[rows, K] * B[K, cols]: input projection, recurrence, dh, dx, dW (calls of few rows
//   take the forward ones by dots.h).
// Mapping: a micro-kernel keeps an R x C block of accumulators (C in vectors) in registers for a whole run of K; B is
//   [K][C][lanes], packed or read in place.
// Memory: K is cut so that a block of B stays in L1 while several row blocks pass over it.
#pragma once
#include "cpu/blocks.h"
#include "cpu/vec.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
constexpr int block_rows(int cols) { return cpu::block_rows(kRegisters, cols); }
constexpr int lesser(int a, int b) { return a < b ? a : b; }
constexpr int kVectorsPerLine = 64 / kVectorBytes;
constexpr int64_t kL1Bytes = 24 << 10, kPrefetchSteps = 32;

// In double the order in which an output's products are added depends on K alone, not on how many rows and columns
// there are beside it: a step by itself is that step of the whole run, bit for bit.
template <class T>
constexpr bool kFixedOrder = sizeof(T) == 8;

// Independent sums per output. At least 8 in a block hide the FMA latency, and short ones round less; in the fixed order
// there are two, and blocks without registers for both at once take one after the other.
template <class T>
constexpr int chains(int outputs) {
  if (kFixedOrder<T>) return 2 * outputs <= kRegisters * 3 / 4 ? 2 : 1;
  return outputs >= 8 ? 1 : outputs >= 4 && kRegisters < 32 ? 2 : 4;
}

template <class T>
struct Gemm {
  T* c;
  int64_t ldc;
  const T* init;  // added to the product: null for zeros; ldi = 0 for one row for all
  int64_t ldi;
  const T* const* a;  // row i of A starts at a[i] + shift
  int64_t shift;
  int64_t k_stride;  // step of A along K: 1, or the row length for a transposed A
  const T* b;
  int64_t ldb;  // from one k to the next: C * lanes where B is packed, a row where it is read as it lies
  int64_t K;
};

template <class T, int R, int C>
__attribute__((noinline)) void gemm_block(const Gemm<T>& g) {
  using V = Vec<T>;
  constexpr int W = V::lanes;
  constexpr int U = chains<T>(R * C);
  const T* a[R];
  V acc[U][R][C];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) {
    a[i] = g.a[i] + g.shift;
#pragma GCC unroll 4
    for (int j = 0; j < C; j++) {
#pragma GCC unroll 4
      for (int u = 0; u < U; u++) acc[u][i][j] = V(T(0));
    }
  }
  if (g.init) {  // wanted at the end; dW and a large batch's gates are no longer in L2 then
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < C; j += kVectorsPerLine) __builtin_prefetch(g.init + i * g.ldi + j * W, 1);
  }
  const T* b = g.b;
  const int64_t ks = g.k_stride, ldb = g.ldb;
  int64_t at = 0;
  auto step = [&](V(&sum)[R][C]) __attribute__((always_inline)) {
    if constexpr (R > 2) {  // with fewer rows the loads of B are all there is to do, and the processor sees them coming
#pragma GCC unroll 4
      for (int j = 0; j < C; j += kVectorsPerLine) __builtin_prefetch(b + kPrefetchSteps * ldb + j * W);
    }
    if constexpr (R >= C) {
      V col[C];
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) col[j] = V::load(b + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        const V row(a[i][at]);
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) sum[i][j] = multiply_add(row, col[j], sum[i][j]);
      }
    } else {
      V row[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) row[i] = V(a[i][at]);
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) {
        const V col = V::load(b + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) sum[i][j] = multiply_add(row[i], col, sum[i][j]);
      }
    }
    b += ldb;
    at += ks;
  };
  int64_t k = 0;
  for (; k + U <= g.K; k += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) step(acc[u]);
  }
  for (; k < g.K; k++) step(acc[0]);
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < C; j++) {
      V sum = acc[0][i][j];
      if constexpr (!kFixedOrder<T>) {
#pragma GCC unroll 4
        for (int u = 1; u < U; u++) sum = sum + acc[u][i][j];
      }
      if (g.init)
        sum = sum + V::load(g.init + i * g.ldi + j * W);  // last: sums of short runs round less than one int64_t chain
      if constexpr (kFixedOrder<T> && U == 2) sum = sum + acc[1][i][j];  // as gemm_two_chains
      sum.store(g.c + i * g.ldc + j * W);
    }
}

// A block in the fixed order: the chain of even k onto `init`, then that of odd k, in one go where both have registers.
template <class T, int R, int C>
void gemm_two_chains(const Gemm<T>& g) {
  if constexpr (chains<T>(R * C) == 2) {
    gemm_block<T, R, C>(g);
  } else {
    Gemm<T> h = g;
    h.ldb *= 2;
    h.k_stride *= 2;
    h.K = (g.K + 1) / 2;
    gemm_block<T, R, C>(h);
    h.b += g.ldb;
    h.shift += g.k_stride;
    h.K = g.K / 2;
    h.init = g.c;
    h.ldi = g.ldc;
    gemm_block<T, R, C>(h);
  }
}

template <class T, int R, int C>
constexpr auto kBlock = kFixedOrder<T> ? gemm_two_chains<T, R, C> : gemm_block<T, R, C>;

template <class T, int C>
void gemm_cols(const Gemm<T>& g, int64_t rows) {
  constexpr int R = block_rows(C);
  using Block = void (*)(const Gemm<T>&);
  static constexpr Block tail[kMaxRows] = {nullptr,
                                           kBlock<T, lesser(1, R), C>,
                                           kBlock<T, lesser(2, R), C>,
                                           kBlock<T, lesser(3, R), C>,
                                           kBlock<T, lesser(4, R), C>,
                                           kBlock<T, lesser(5, R), C>,
                                           kBlock<T, lesser(6, R), C>,
                                           kBlock<T, lesser(7, R), C>};
  const int64_t k_max = kL1Bytes / int64_t((kFixedOrder<T> ? kMaxCols : C) * kVectorBytes);
  int64_t k0 = 0;
  do {  // at least once: an empty sum is `init`, or zeros
    Gemm<T> h = g;
    h.K = g.K - k0 < k_max ? g.K - k0 : k_max;
    h.b = g.b + k0 * g.ldb;
    h.shift = g.shift + k0 * g.k_stride;
    if (k0) {
      h.init = g.c;
      h.ldi = g.ldc;
    }
    for (int64_t r = 0; r < rows; r += R) {
      if (rows - r >= R)
        kBlock<T, R, C>(h);
      else
        tail[rows - r](h);
      h.a += R;
      h.c += R * h.ldc;
      if (h.init) h.init += R * h.ldi;
    }
    k0 += k_max;
  } while (k0 < g.K);
}
// cols: width of the packed block in vectors, 1 to kMaxCols.
template <class T>
void gemm(int cols, const Gemm<T>& g, int64_t rows) {
  switch (cols) {
    case 1:
      return gemm_cols<T, 1>(g, rows);
    case 2:
      return gemm_cols<T, 2>(g, rows);
    case 3:
      return gemm_cols<T, 3>(g, rows);
    default:
      return gemm_cols<T, 4>(g, rows);
  }
}

// dst[k * ldd + j] = src[j * K + k] for j < n <= lanes, zeros up to lanes: one gate vector of a weight, K-major.
template <class T>
void pack_transposed(T* dst, int64_t ldd, const T* src, int64_t n, int64_t K) {
  using V = Vec<T>;
  constexpr int W = V::lanes;
  for (int64_t k = 0; k < K; k += W) {
    V r[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; j++) r[j] = j < n ? V::load(src + j * K + k, K - k) : V(T(0));
    transpose(r);
#pragma GCC unroll 16
    for (int j = 0; j < W; j++)
      if (k + j < K) r[j].store(dst + (k + j) * ldd);
  }
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
