// Elements of one batch row as 32-bit words, their loads and stores, and the transposition between the order of
// memory (one batch row, consecutive units) and that of the sums (one unit, two batch rows). Two elements are one word
// of a 16-bit type, two words of a 32-bit type.
#pragma once
#include "cuda/layout.h"

namespace fusedrnn::cuda {
// Zero where not `valid`.
template <int kWords>
FUSEDRNN_DEVICE void load_words(uint32_t (&w)[kWords], const char* p, bool valid) {
  if constexpr (kWords == 4) {
    const uint4 v = ld16_if(p, valid);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else if constexpr (kWords == 2) {
    const uint2 v = ld8_if(p, valid);
    w[0] = v.x, w[1] = v.y;
  } else {
    w[0] = ld4_if(p, valid);
  }
}
template <int kWords>
FUSEDRNN_DEVICE void store_words(char* p, const uint32_t (&w)[kWords], bool valid) {
  if constexpr (kWords == 4)
    st16_if(p, make_uint4(w[0], w[1], w[2], w[3]), valid);
  else if constexpr (kWords == 2)
    st8_if(p, make_uint2(w[0], w[1]), valid);
  else
    st4_if(p, w[0], valid);
}
template <int kWords>
FUSEDRNN_DEVICE void store_shared(char* p, const uint32_t (&w)[kWords]) {
  if constexpr (kWords == 4)
    *reinterpret_cast<uint4*>(p) = make_uint4(w[0], w[1], w[2], w[3]);
  else if constexpr (kWords == 2)
    *reinterpret_cast<uint2*>(p) = make_uint2(w[0], w[1]);
  else
    *reinterpret_cast<uint32_t*>(p) = w[0];
}

// A 32-bit element is transposed as two matrices of 16-bit halves.
template <class P>
FUSEDRNN_DEVICE void transpose(uint32_t* w) {
  if constexpr (P::PACK == 2) {
    w[0] = movmatrix(w[0]);
  } else {
    const uint32_t low = movmatrix((w[0] & 0xffffu) | w[1] << 16);
    const uint32_t high = movmatrix(w[0] >> 16 | (w[1] & 0xffff0000u));
    w[0] = (low & 0xffffu) | high << 16;
    w[1] = low >> 16 | (high & 0xffff0000u);
  }
}
template <class P>
FUSEDRNN_DEVICE void to_sums(const uint32_t* w, Value<P> (&v)[2]) {
  uint32_t x[2 / P::PACK];
  for (int i = 0; i < 2 / P::PACK; ++i) x[i] = w[i];
  transpose<P>(x);
  if constexpr (P::PACK == 2) {
    unpack2<P>(x[0], v[0].x, v[1].x);
  } else {
    v[0] = bits_float(x[0]);
    v[1] = bits_float(x[1]);
  }
}
// A NaN becomes the canonical one: its bits are never those of the grid's sentinel. The conversion to 16 bits does so
// by itself.
FUSEDRNN_DEVICE uint32_t canonical_bits(float x) { return x != x ? 0x7fffffffu : float_bits(x); }
template <class P>
FUSEDRNN_DEVICE void to_natural(const Value<P> (&v)[2], uint32_t* w) {
  if constexpr (P::PACK == 2) {
    w[0] = pack2<P>(v[0].x, v[1].x);
  } else {
    w[0] = canonical_bits(v[0].x);
    w[1] = canonical_bits(v[1].x);
  }
  transpose<P>(w);
}
template <class P, int kWords>
FUSEDRNN_DEVICE void to_operands(uint32_t (&o)[kWords], const uint32_t (&w)[kWords]) {
  for (int i = 0; i < kWords; ++i) o[i] = operand<P>(w[i]);
}
template <class P>
FUSEDRNN_DEVICE uint4 to_operands(uint4 v) {
  return make_uint4(operand<P>(v.x), operand<P>(v.y), operand<P>(v.z), operand<P>(v.w));
}

// 3xTF32: x = high + low exactly, and the product of the two low parts is below the rounding of fp32. Small terms
// first.
template <>
FUSEDRNN_DEVICE void mma<Fp32>(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  uint4 high, low;
  tf32_split_here(a.x, high.x, low.x);
  tf32_split_here(a.y, high.y, low.y);
  tf32_split_here(a.z, high.z, low.z);
  tf32_split_here(a.w, high.w, low.w);
  const uint32_t h0 = tf32_high(b0), h1 = tf32_high(b1);
  mma<Tf32>(c, low, h0, h1);
  mma<Tf32>(c, high, tf32_low(b0), tf32_low(b1));
  mma<Tf32>(c, high, h0, h1);
}
}  // namespace fusedrnn::cuda
