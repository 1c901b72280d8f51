// The stand-in's precisions, products and functions: what csrc/cuda/device_math.h is in PTX.
#pragma once
#include <stdint.h>
#include <string.h>

#include <cmath>

#include "host_device/machine.h"

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace fusedrnn::cuda {
using std::fmaf;

inline float bits_float(uint32_t x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
inline uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

struct Bf16 {
  static constexpr int PACK = 2;
  static float get(uint32_t v) { return bits_float(v << 16); }
  static uint32_t put(float f) {
    if (std::isnan(f)) return 0x7fff;
    const uint32_t u = float_bits(f);
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
};
struct Fp16 {
  static constexpr int PACK = 2;
  static float get(uint32_t v) {
    const uint16_t u = uint16_t(v);
    _Float16 half;
    memcpy(&half, &u, 2);
    return float(half);
  }
  static uint32_t put(float f) {
    if (std::isnan(f)) return 0x7fff;
    const _Float16 half = _Float16(f);
    uint16_t u;
    memcpy(&u, &half, 2);
    return u;
  }
};
struct Tf32 {
  static constexpr int PACK = 1;
};
struct Fp32 {
  static constexpr int PACK = 1;
};

inline uint32_t tf32_high(uint32_t x) { return x & 0xffffe000u; }  // the tensor core does not see the other bits
inline uint32_t tf32_low(uint32_t x) { return float_bits(bits_float(x) - bits_float(tf32_high(x))); }
inline void tf32_split_here(uint32_t x, uint32_t& high, uint32_t& low) {
  high = tf32_high(x);
  low = tf32_low(x);
}
template <class P>
uint32_t operand(uint32_t v) {
  return v;
}
template <>
inline uint32_t operand<Tf32>(uint32_t v) {  // to nearest, ties away from zero
  return (v & 0x7f800000u) == 0x7f800000u ? v : (v + 0x1000u) & 0xffffe000u;
}

template <class P>
float element(uint32_t word, [[maybe_unused]] int e) {  // as the tensor core sees it
  if constexpr (P::PACK == 2)
    return P::get(word >> (16 * e) & 0xffff);
  else
    return bits_float(tf32_high(word));
}
template <class P>
void mma(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  static constexpr int kPack = P::PACK, kDepth = 8 * kPack;  // m16n8k16, or m16n8k8
  struct Argument {
    float* c;
    uint32_t a[4], b[2];
  } argument{c, {a.x, a.y, a.z, a.w}, {b0, b1}};
  host_device::collective<Argument>(&argument, [](Argument** lanes) {
    static float rows[16][kDepth], columns[8][kDepth];
    for (int i = 0; i < 32; i++)
      for (int e = 0; e < kPack; e++) {
        const int group = i >> 2, k = (i & 3) * kPack + e;
        for (int j = 0; j < 4; j++) rows[group + 8 * (j & 1)][k + 4 * kPack * (j >> 1)] = element<P>(lanes[i]->a[j], e);
        for (int j = 0; j < 2; j++) columns[group][k + 4 * kPack * j] = element<P>(lanes[i]->b[j], e);
      }
    for (int i = 0; i < 32; i++)
      for (int e = 0; e < 4; e++) {
        const float *row = rows[(i >> 2) + 8 * (e >> 1)], *column = columns[2 * (i & 3) + (e & 1)];
        float sum = 0;
        for (int k = 0; k < kDepth; k++) sum += row[k] * column[k];
        lanes[i]->c[e] += sum;
      }
  });
}
inline uint32_t movmatrix(uint32_t v) {
  host_device::collective<uint32_t>(&v, [](uint32_t** lanes) {
    uint32_t in[32];
    for (int i = 0; i < 32; i++) in[i] = *lanes[i];
    for (int i = 0; i < 32; i++) {
      const int group = i >> 2, four = i & 3;
      uint32_t out = 0;
      for (int e = 0; e < 2; e++)
        out |= (in[(2 * four + e) * 4 + group / 2] >> (16 * (group & 1)) & 0xffff) << (16 * e);
      *lanes[i] = out;
    }
  });
  return v;
}

template <class P>
uint32_t pack2(float low, float high) {
  return P::put(low) | P::put(high) << 16;
}
template <class P>
void unpack2(uint32_t v, float& low, float& high) {
  low = P::get(v & 0xffff);
  high = P::get(v >> 16);
}
inline float tanh_fast(float x) { return std::tanh(x); }
inline float sigmoid_fast(float x) { return 0.5f * std::tanh(0.5f * x) + 0.5f; }
template <class P>
float tanh_of(float x) {
  return std::tanh(x);
}
template <class P>
float sigmoid_of(float x) {
  return P::PACK == 2 ? sigmoid_fast(x) : 1.f / (1.f + std::exp(-x));
}
}  // namespace fusedrnn::cuda
