// One call of the CUDA backend: the problem, what its products are computed in, and the pointers. No torch, no CUDA.
//
// T time steps, B batch rows, S streams, H hidden units, G gates of a product (GRU 3, LSTM 4, RNN 1), Z kept values (4,
// 4, 0), as in recurrence.h. Every tensor is contiguous, in the element type of the precision (bfloat16, half, float,
// float, double), on the device, and aligned to 16 bytes. H is a multiple of 8: ops.cpp pads what is not.
#pragma once
#include "recurrence.h"

namespace fusedrnn::cuda {
enum class Pass : int { forward, backward };
// Of the products. State and sums are float (double for fp64) through the whole time loop. tf32 rounds the operands of
// a float problem to 11 significant bits; fp32 is the same problem in full float.
enum class Precision : int { bf16, fp16, tf32, fp32, fp64 };
enum class Regime : int { automatic, step, cta, cluster, grid };

constexpr bool has_c(int cell) { return cell == kLstm; }
constexpr int element_bytes(Precision p) {
  return p == Precision::bf16 || p == Precision::fp16 ? 2 : p == Precision::fp64 ? 8 : 4;
}

struct Call {
  Pass pass;
  Precision precision;
  Problem problem;
  Rows rows;                      // on the device
  const int64_t* offsets;         // [T]: first row of each step, if rows lie packed ([N, S, ...], not [T, B, S, ...])
  Noise noise;                    // the step regime only
  const int64_t* key;             // [2], on the device: what the noise is drawn by; null for zoneout's expectation
  const void *w, *bias;           // [S, G H, H]; [S, G H] or null, forward only
  const void *h0, *c0;            // [S, B, H] or null (zeros)
  const void *reset_h, *reset_c;  // [S, H] or null (zeros): where a reset goes back to; the step regime only

  // Forward writes these, backward reads them. Steps beyond a row's length are zeros.
  const void* gates_x;  // [T, B, S, G H], forward only: W_ih x + b_ih
  void* y;              // [T, B, S, H]
  void* cs;             // [T, B, S, H], LSTM
  void* gates;          // [T, B, S, Z H]; null if backward will not come, or rebuilds them
  void *hn, *cn;        // [S, B, H], forward only

  // Backward.
  const void *dy, *dgates, *dcs;  // as y, gates, cs; null for zero. dgates and dcs: the step regime only
  const void *dhn, *dcn;          // [S, B, H] or null
  void* dgates_x;                 // [T, B, S, G H]
  void* dq;                       // [T, B, S, H], GRU: the gradient of W_hn h + b_hn
  void *dh0, *dc0;                // [S, B, H], dc0: LSTM
  void *dreset_h, *dreset_c;      // [S, B, H], of each row's resets; where those are given
};

// What a call with layer normalisation has besides. Its dq is also the LSTM's: the gradient of the normalised c.
struct NormTensors {
  const void* gain;              // [S, G H], of the product with W_hh; the call's bias is its shift
  const void *gain_c, *shift_c;  // [S, H], LSTM; shift_c may be null
  void* products;                // [T, B, S, G H]: W_hh h. Forward writes it, unless null, backward reads it
  void* dproducts;               // its gradient, backward
};
}  // namespace fusedrnn::cuda
