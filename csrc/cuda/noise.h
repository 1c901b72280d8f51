// Computes: which units zoneout and recurrent dropout hit, and what zoneout makes of a state and of its gradient.
// Mapping: a unit of a row by itself, whose thread draws all four words of its block and takes one.
// Memory: the key is read where it lies, on the device; a mask is nowhere kept.
// Source: fusedrnn/philox.py, which says what is drawn. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once
#include "cuda/step_layout.h"

namespace fusedrnn::cuda {
// A unit's word of Philox4x32-10.
FUSEDRNN_DEVICE uint32_t drawn_word(const int64_t* key, NoiseKind kind, int64_t t, int64_t b, int64_t s, int64_t unit) {
  uint32_t key0 = static_cast<uint32_t>(load_global(key)), key1 = static_cast<uint32_t>(load_global(key + 1));
  uint32_t word0 = static_cast<uint32_t>(t), word1 = static_cast<uint32_t>(b), word2 = static_cast<uint32_t>(unit / 4),
           word3 = static_cast<uint32_t>(4 * s) + kind;
  for (int round = 0; round < 10; round++) {
    const uint64_t p = uint64_t{0xD2511F53} * word0, q = uint64_t{0xCD9E8D57} * word2;
    word0 = static_cast<uint32_t>(q >> 32) ^ word1 ^ key0, word1 = static_cast<uint32_t>(q);
    word2 = static_cast<uint32_t>(p >> 32) ^ word3 ^ key1, word3 = static_cast<uint32_t>(p);
    key0 += 0x9E3779B9, key1 += 0xBB67AE85;
  }
  // selected, not indexed: an array would lie in local memory
  const uint32_t low = unit % 2 ? word1 : word0, high = unit % 2 ? word3 : word2;
  return unit % 4 / 2 ? high : low;
}

// The noise of one unit of one row of stream s, in numbers of E (step_layout.h).
template <class E>
struct UnitNoise {
  using V = typename E::Value;
  using Number = typename E::Number;
  const Call& call;
  const int64_t s, b, unit;

  FUSEDRNN_DEVICE bool happens(NoiseKind kind, int64_t t, double rate) const {
    return drawn_word(call.key, kind, t, b, s, unit) < static_cast<uint64_t>(rate * 4294967296.);
  }
  // What recurrent dropout multiplies the state by, one number a sequence.
  FUSEDRNN_DEVICE V dropout_factor() const {
    const double rate = call.noise.dropout;
    return V(happens(kDropout, 0, rate) ? Number(0) : static_cast<Number>(1 / (1 - rate)));
  }
  // The share of the old state that the unit keeps: 0 or 1 where it is drawn, else the probability itself.
  FUSEDRNN_DEVICE V old_share(NoiseKind kind, int64_t t) const {
    const double rate = kind == kZoneoutH ? call.noise.zoneout_h : call.noise.zoneout_c;
    if (!call.key) return V(static_cast<Number>(rate));
    return V(Number(rate > 0 && happens(kind, t, rate)));
  }
};

// share * x, but 0 where the share is 0, whatever x is.
template <class V>
FUSEDRNN_DEVICE V portion(V share, V x) {
  return where_positive(share, share * x);
}
template <class V>
FUSEDRNN_DEVICE V mixed(V share, V old, V now) {
  return portion(share, old) + portion(V(1) - share, now);
}
}  // namespace fusedrnn::cuda
