// Computes: vectors of float lanes for cells whose results are rounded to bfloat16: sigmoid and tanh are right to 2^-16
//   of their value, small ones included, for half the instructions of vec.h's. And what reads and writes bfloat16.
#pragma once
#include "cpu/kernel.h"
#include "cpu/vec.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
struct Quick {
  using V = Vec<float>;
  static constexpr __mmask16 kAll = 0xffff;  // unmasked intrinsics make GCC 12 warn of an undefined operand
  V v;
  FUSEDRNN_INLINE Quick() = default;
  FUSEDRNN_INLINE Quick(V r) : v(r) {}
  FUSEDRNN_INLINE Quick(float s) : v(s) {}
  friend FUSEDRNN_INLINE Quick operator+(Quick a, Quick b) { return a.v + b.v; }
  friend FUSEDRNN_INLINE Quick operator-(Quick a, Quick b) { return a.v - b.v; }
  friend FUSEDRNN_INLINE Quick operator*(Quick a, Quick b) { return a.v * b.v; }
  friend FUSEDRNN_INLINE Quick multiply_add(Quick a, Quick b, Quick c) { return multiply_add(a.v, b.v, c.v); }
  friend FUSEDRNN_INLINE Quick subtract_product(Quick c, Quick a, Quick b) { return subtract_product(c.v, a.v, b.v); }
  friend FUSEDRNN_INLINE Quick positive_part(Quick x) { return positive_part(x.v); }

  // x within [-most, most]; a NaN comes through.
  static FUSEDRNN_INLINE V clamped(V x, float most) {
    const __m512 low = _mm512_maskz_max_ps(kAll, V(-most).v, x.v);
    return V(V::Raw(_mm512_maskz_min_ps(kAll, V(most).v, low)));
  }
  struct Power {  // 2^y = 2^n (1 + rest)
    V n, rest;
  };
  static FUSEDRNN_INLINE Power power(V x, float log2_of_base) {  // base^x
    const V base(log2_of_base), n = multiply_add(x, base, V(Float<float>::round)) - V(Float<float>::round),
                                r = multiply_add(x, base, V(0.f) - n);
    // (2^r - 1) / r on |r| <= 1/2, with the least largest relative error, 1.5e-5
    const V q = multiply_add(multiply_add(multiply_add(V(9.61811058e-3f), r, V(5.58372891e-2f)), r, V(.240232522f)), r,
                             V(.693136858f));
    return {n, q * r};
  }
  static FUSEDRNN_INLINE V scaled(V x, V n) { return V(V::Raw(_mm512_maskz_scalef_ps(kAll, x.v, n.v))); }
  // 1 / d; zero where not `open`.
  static FUSEDRNN_INLINE V reciprocal(V d, __mmask16 open = kAll) {
    const V y(V::Raw(_mm512_maskz_rcp14_ps(kAll, d.v)));
    return V(V::Raw(_mm512_maskz_fmadd_ps(open, y.v, subtract_product(V(1.f), d, y).v, y.v)));
  }
};
FUSEDRNN_INLINE Quick sigmoid(Quick x) {
  using V = Vec<float>;
  constexpr float most = Float<float>::exp_max;
  const Quick::Power e = Quick::power(Quick::clamped(x.v, most), -1.44269504f);
  const __mmask16 open = _mm512_cmp_ps_mask(x.v.v, V(-most).v, _CMP_NLT_UQ);  // closed: not even a huge value passes
  return Quick::reciprocal(V(1.f) + Quick::scaled(e.rest + V(1.f), e.n), open);
}
// m / (m + 2), m = e^2x - 1: right for small x too.
FUSEDRNN_INLINE Quick hyperbolic_tangent(Quick x) {
  using V = Vec<float>;
  const Quick::Power e = Quick::power(Quick::clamped(x.v, Float<float>::tanh_is_1), 2.88539008f);
  const V scale = Quick::scaled(V(1.f), e.n), m = multiply_add(scale, e.rest, scale - V(1.f));
  return m * Quick::reciprocal(m + V(2.f));
}

inline __mmask16 first_lanes(int64_t n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }
inline Vec<float> widen(__m256i bits) {
  return Vec<float>(Vec<float>::Raw(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16)));
}
inline Vec<float> load(const Bfloat* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
inline __m256i rounded(Vec<float> v) { return (__m256i)_mm512_maskz_cvtneps_pbh(0xffff, v.v); }
inline void store(__m256i bits, Bfloat* p, int64_t n) { _mm256_mask_storeu_epi16(p, first_lanes(n), bits); }
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
