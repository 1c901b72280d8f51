// One call of the recurrence: the problem and the pointers that ops, dispatch and kernels share. No torch, no CUDA.
//
//   T time steps, B batch rows, I inputs, H hidden units, S streams, G gates of a product (GRU 3, LSTM 4, RNN 1), Z
//   kept values (4, 4, 0). A stream is one recurrence over the batch: a direction of a layer, or of a member of an
//   ensemble. Stream s runs backwards in time iff s % directions == 1. Everything is contiguous along its last axis;
//   strides are in elements.
#pragma once
#include <stdint.h>

namespace fusedrnn {
enum CellKind : int { kGru, kLstm, kRnnTanh, kRnnRelu };
constexpr int kGatesOf[] = {3, 4, 1, 1}, kKeptOf[] = {4, 4, 0, 0};  // by CellKind

struct Problem {
  int cell, directions;
  int64_t T, B, S, H;
  int64_t I;             // width of x where the kernel projects it itself, 0 where the projection is given
  bool dropout = false;  // whether W_hh sees less than the state (Noise)
  bool normed = false;   // whether products are normalised (Norms)
};

// Which steps of which rows are real, and where a row starts anew. Either pointer may be null.
struct Rows {
  const int64_t* lengths;  // [S, B]: row b of stream s takes the steps 0 <= t < length
  int64_t length_s, length_b;
  const bool* reset;  // [T, B, S]: the state does not pass between t - 1 and t, in either direction
  int64_t reset_t, reset_b, reset_s;

  bool masked() const { return lengths || reset; }
  bool real(int64_t t, int64_t b, int64_t s) const { return !lengths || t < lengths[s * length_s + b * length_b]; }
  bool cut(int64_t t, int64_t b, int64_t s) const { return reset && reset[t * reset_t + b * reset_b + s * reset_s]; }
};

// Zoneout and recurrent dropout: fusedrnn/reference.py says what they are, fusedrnn/philox.py what is drawn.
enum NoiseKind : uint32_t { kZoneoutH, kZoneoutC, kDropout };
struct Noise {
  double zoneout_h, zoneout_c, dropout;  // probabilities
  bool drawn;                            // by the key; else zoneout mixes the two states
  uint32_t key[2];                       // on the CPU; a GPU's kernels read theirs themselves

  bool any() const { return zoneout_h > 0 || zoneout_c > 0 || dropout > 0; }
};

template <class T>
struct Sequence {  // row (t, b, s) of an array [T, B, S, ...]
  T* base;
  int64_t t, b, s;
  explicit operator bool() const { return base; }
  T* at(int64_t time, int64_t row, int64_t stream) const { return base + time * t + row * b + stream * s; }
};

template <class T>
struct Kept {  // the Z values that backward needs, of one step and row, one vector of units at a time
  T* base;
  int64_t t, b, s;
  int64_t vector, value;  // from one vector of units, and from one of the Z values, to the next
  bool padded;            // room for a whole vector behind the last unit
  explicit operator bool() const { return base; }
  T* at(int64_t time, int64_t row, int64_t stream) const { return base + time * t + row * b + stream * s; }
};

template <class T>
struct Weights {  // of one stream: [G H, I], [G H, H], [G H], [G H]; biases may be null
  T *ih, *hh, *b_ih, *b_hh;
};

// Gains and shifts of layer normalisation, of all streams: [S, G H], [S, H], [S, H]. Those of c are the LSTM's; no shift: 0.
template <class T>
struct Norms {
  T *hh, *c, *c_shift;
};
}  // namespace fusedrnn
