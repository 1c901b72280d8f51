// Computes: which units zoneout and recurrent dropout hit, and what zoneout makes of a state and of its gradient.
// Mapping: a vector of units at a time; its blocks of Philox side by side, so that the compiler can make vectors of them.
// Source: fusedrnn/philox.py, which says what is drawn. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once
#include "cpu/vec.h"
#include "recurrence.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
// Lane i: whether the event of that probability takes place at unit + i, 1 or 0. `unit` is a multiple of the lanes.
template <class T>
FUSEDRNN_INLINE Vec<T> happens(const Noise& noise, double rate, NoiseKind kind, int64_t t, int64_t b, int64_t s,
                               int64_t unit) {
  constexpr int W = Vec<T>::lanes, kBlocks = W < 4 ? 1 : W / 4;
  uint32_t word[4][kBlocks], key[2] = {noise.key[0], noise.key[1]};
  for (int i = 0; i < kBlocks; i++) {
    word[0][i] = uint32_t(t), word[1][i] = uint32_t(b);
    word[2][i] = uint32_t(unit / 4 + i), word[3][i] = uint32_t(4 * s) + kind;
  }
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < kBlocks; i++) {
      const uint64_t p = uint64_t(0xD2511F53) * word[0][i], q = uint64_t(0xCD9E8D57) * word[2][i];
      word[0][i] = uint32_t(q >> 32) ^ word[1][i] ^ key[0], word[1][i] = uint32_t(q);
      word[2][i] = uint32_t(p >> 32) ^ word[3][i] ^ key[1], word[3][i] = uint32_t(p);
    }
    key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
  }
  const uint64_t below = uint64_t(rate * 4294967296.);
  T lanes[W];
  for (int i = 0; i < W; i++) lanes[i] = word[(unit + i) % 4][i / 4] < below ? T(1) : T(0);
  return Vec<T>::load(lanes);
}

// What recurrent dropout multiplies a row's state by.
template <class T>
FUSEDRNN_INLINE Vec<T> dropout_mask(const Noise& noise, int64_t b, int64_t s, int64_t unit) {
  const Vec<T> stays = Vec<T>(T(1)) - happens<T>(noise, noise.dropout, kDropout, 0, b, s, unit);
  return stays * Vec<T>(noise.dropout < 1 ? T(1 / (1 - noise.dropout)) : T(0));
}

// The share of the old state that a unit keeps: 0 or 1 where it is drawn, else the probability itself.
template <class T>
FUSEDRNN_INLINE Vec<T> old_share(const Noise& noise, NoiseKind kind, int64_t t, int64_t b, int64_t s, int64_t unit) {
  const double rate = kind == kZoneoutH ? noise.zoneout_h : noise.zoneout_c;
  return noise.drawn && rate > 0 ? happens<T>(noise, rate, kind, t, b, s, unit) : Vec<T>(T(rate));
}

// share * x, but 0 where the share is 0, whatever x is.
template <class T>
FUSEDRNN_INLINE Vec<T> portion(Vec<T> share, Vec<T> x) {
  return where_positive(share, share * x);
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
