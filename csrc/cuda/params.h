// What the kernels are given: a call, as plain numbers and pointers of the device. No device code.
#pragma once
#include <stdint.h>

#include "cuda/instance.h"

namespace fusedrnn::cuda {
struct Params {
  int T, B, S, H, directions;
  int groups;              // batch groups a stream, each on a team of its own
  int first_team;          // of this launch; team = stream * groups + group
  const int64_t* lengths;  // masked: [S, B] by strides, or null
  int64_t length_s, length_b;
  const int64_t* offsets;  // masked: [T] first row of each step, or null: t * B
  const uint8_t* cuts;     // masked: [S, T + 2, tiles of 8 rows], or null: see pack_cuts
  const char* w;           // packed, per stream G H H elements of the instance's H
  const char* bias;        // as in Call, like all that follows
  const char *h0, *c0;
  const char* gates_x;
  char *y, *cs, *gates;  // backward only reads them
  char *hn, *cn;
  const char *dy, *dhn, *dcn;
  char *dgates_x, *dq;
  char *dh0, *dc0;
};

constexpr int kPackThreads = 128;
// The pack kernel of an instance does not depend on all of it: one for all that share it.
constexpr Instance packing(Instance i) {
  if (i.exchange != Exchange::scatter) i.exchange = Exchange::cta;
  i.masked = false, i.rows = 8, i.chains = 1, i.k_registers = 0, i.cluster = 1;
  return i;
}
constexpr int packed_blocks(const Instance& i) {
  return i.H / 16 * kGatesOf[i.cell] * (i.H * element_bytes(i.precision) / 32) * 32 / kPackThreads;
}

struct CutsParams {
  const bool* reset;  // [T, B, S] by strides
  int64_t reset_t, reset_b, reset_s;
  const int64_t* lengths;
  int64_t length_s, length_b;
  uint8_t* cuts;
  int T, B, S, directions, tiles;
};

struct FillParams {
  char* output;
  int64_t row_bytes;
  const int64_t* offsets;
  const int64_t* lengths;
  int64_t length_s, length_b;
  int T, B, S;
};
}  // namespace fusedrnn::cuda
