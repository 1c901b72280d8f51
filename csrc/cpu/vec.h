// Computes: vectors of float or double lanes and the functions the cells need (exp, sigmoid, tanh), the same
//   arithmetic for every instruction set. GCC and Clang vector extensions carry the plain operations; intrinsics stand
//   only where they pay. What cells are written with (cells/activations.h) is here under the same names.
// Included once per instruction set, inside its own namespace FUSEDRNN_ISA: the same inline function compiled with
//   other flags must never be merged with this one by the linker (an AVX-512 copy called on an AVX2 machine is an
//   illegal instruction).
#pragma once
#include <stdint.h>

#include <utility>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif
#define FUSEDRNN_INLINE inline __attribute__((always_inline))

namespace fusedrnn::cpu::FUSEDRNN_ISA {
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <class T>
struct Float;  // vectors of a binary format, and what exp needs to know of it
template <>
struct Float<float> {
  typedef float Raw __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int mantissa = 23;
  static constexpr float round = 12582912.f, exp_max = 87.f, tanh_is_1 = 8.66f, ln2_hi = 0.693359375f,
                         ln2_lo = -2.12194440e-4f;
  // (e^r - 1 - r) / r^2 on |r| <= ln2/2, highest power first (minimax, as in Cephes)
  static constexpr float poly[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                   4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};
template <>
struct Float<double> {
  typedef double Raw __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int mantissa = 52;
  static constexpr double round = 6755399441055744., exp_max = 708., tanh_is_1 = 18.71,
                          ln2_hi = 6.93147180369123816490e-1, ln2_lo = 1.90821492927058770002e-10;
  static constexpr double poly[] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800,
                                    1. / 362880,     1. / 40320,     1. / 5040,     1. / 720,
                                    1. / 120,        1. / 24,        1. / 6,        .5};
};

template <class T>
struct Vec {
  using Raw = typename Float<T>::Raw;
  using Unaligned = typename Float<T>::Unaligned;
  using Bits = typename Float<T>::Bits;
  static constexpr int lanes = kVectorBytes / sizeof(T);
  Raw v;
  FUSEDRNN_INLINE Vec() = default;
  FUSEDRNN_INLINE Vec(Raw r) : v(r) {}
  FUSEDRNN_INLINE Vec(T s) : v(s - Raw{}) {}
  static FUSEDRNN_INLINE Vec load(const T* p) { return Vec(Raw(*(const Unaligned*)p)); }
  FUSEDRNN_INLINE void store(T* p) const { *(Unaligned*)p = v; }
  // The first n lanes of p, zeros after; n may exceed the width. Nothing beyond p + n is touched.
  static FUSEDRNN_INLINE Vec load(const T* p, int64_t n) {
    if (n >= lanes) return load(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return Vec(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
    else
      return Vec(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p));
#else
    Raw r = {};
    for (int64_t i = 0; i < n; i++) r[i] = p[i];
    return Vec(r);
#endif
  }
  FUSEDRNN_INLINE void store(T* p, int64_t n) const {
    if (n >= lanes) return store(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
    else
      _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
#else
    for (int64_t i = 0; i < n; i++) p[i] = v[i];
#endif
  }
  friend FUSEDRNN_INLINE Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  friend FUSEDRNN_INLINE Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  friend FUSEDRNN_INLINE Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  friend FUSEDRNN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
    return Vec(a.v * b.v + c.v);
  }  // contracted: -ffp-contract=fast
  friend FUSEDRNN_INLINE Vec subtract_product(Vec c, Vec a, Vec b) { return Vec(c.v - a.v * b.v); }
  // Written so that a NaN in x comes through.
  friend FUSEDRNN_INLINE Vec at_most(Vec x, Vec c) { return Vec(Raw(c.v < x.v ? c.v : x.v)); }
  friend FUSEDRNN_INLINE Vec at_least(Vec x, Vec c) { return Vec(Raw(c.v > x.v ? c.v : x.v)); }
  friend FUSEDRNN_INLINE Vec positive_part(Vec x) { return Vec(Raw(x.v < Raw{} ? Raw{} : x.v)); }
  friend FUSEDRNN_INLINE Vec where_positive(Vec x, Vec a) { return Vec(Raw(x.v <= Raw{} ? Raw{} : a.v)); }
  friend FUSEDRNN_INLINE Vec zero_if_nan(Vec x) { return Vec(Raw(x.v == x.v ? x.v : Raw{})); }
  friend FUSEDRNN_INLINE Vec divide(Vec a, Vec b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {  // a 512-bit division blocks its port for 16 cycles; this is within 1 ulp of it
      const __m512 y0 = _mm512_maskz_rcp14_ps(0xffff, b.v),
                   y = _mm512_fmadd_ps(y0, _mm512_fnmadd_ps(b.v, y0, _mm512_set1_ps(1)), y0), q = a.v * y;
      return Vec(_mm512_fmadd_ps(y, _mm512_fnmadd_ps(b.v, q, a.v), q));
    }
#endif
    return Vec(a.v / b.v);
  }
};

// e^x = scale * (1 + rest): kept apart so that e^x - 1 costs no accuracy near 0.
template <class T>
struct Exp {
  Vec<T> scale, rest;
};
template <class T>
FUSEDRNN_INLINE Exp<T> exp_parts(Vec<T> x) {
  using V = Vec<T>;
  using F = Float<T>;
  using Bits = typename V::Bits;
  const V shifted =
      multiply_add(x, V(T(1.4426950408889634)), V(F::round));  // x / ln 2: the low bits are the rounded integer
  const V n = shifted - V(F::round);
  const V r = subtract_product(subtract_product(x, n, V(F::ln2_hi)), n, V(F::ln2_lo));
  V p(F::poly[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof(F::poly) / sizeof(T); i++) p = multiply_add(p, r, V(F::poly[i]));
  const Bits one = Bits(V(T(1)).v);
  return {V(typename V::Raw((Bits(shifted.v) << F::mantissa) + one)), multiply_add(p, r * r, r)};
}
template <class T>
FUSEDRNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using V = Vec<T>;
  const V one(T(1)), most(Float<T>::exp_max), least(-Float<T>::exp_max);
  const Exp<T> e = exp_parts(at_least(at_most(V(T(0)) - x, most), least));
  const V result = divide(one, one + multiply_add(e.scale, e.rest, e.scale));
  return V(typename V::Raw(x.v < least.v ? typename V::Raw{} : result.v));  // closed: not even a huge value passes
}
// tanh|x| = q = m / (m + 2), m = e^2|x| - 1: no branch for small x. One Newton step then takes away the roundings of m
// + 2 and of the quotient; 1 / (m + 2) = (1 - q) / 2 is at hand. Beyond tanh_is_1 the result is 1 to the last place,
// and m too large for the step.
template <class T>
FUSEDRNN_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) {
  using V = Vec<T>;
  using Bits = typename V::Bits;
  const V one(T(1)), two(T(2)), half(T(.5));
  const Bits sign = Bits(x.v) & Bits(V(T(-0.)).v);
  const V a(typename V::Raw(Bits(x.v) ^ sign));
  const Exp<T> e = exp_parts(a + a);
  const V m = multiply_add(e.scale, e.rest, e.scale - one), d = m + two, q = divide(m, d);
  const V rest = subtract_product(subtract_product(m, q, d), q, m - (d - two));
  const V result = multiply_add(rest, subtract_product(half, q, half), q);
  return V(typename V::Raw(Bits(a.v > V(Float<T>::tanh_is_1).v ? one.v : result.v) | sign));
}

// Square transpose in log2(lanes) stages; stage S swaps the off-diagonal S x S blocks of rows i and i + S.
template <int S, class T, int... J>
FUSEDRNN_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, J...>) {
  constexpr int W = Vec<T>::lanes;
#if defined(__clang__)
  const auto x = __builtin_shufflevector(a.v, b.v, (J & S ? W + J - S : J)...),
             y = __builtin_shufflevector(a.v, b.v, (J & S ? W + J : J + S)...);
#else
  using Bits = typename Vec<T>::Bits;
  const auto x = __builtin_shuffle(a.v, b.v, Bits{(J & S ? W + J - S : J)...}),
             y = __builtin_shuffle(a.v, b.v, Bits{(J & S ? W + J : J + S)...});
#endif
  a.v = x;
  b.v = y;
}
template <int S = 1, class T>
FUSEDRNN_INLINE void transpose(Vec<T>* r) {
  constexpr int W = Vec<T>::lanes;
  if constexpr (S < W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; i++)
      if (!(i & S)) swap_blocks<S>(r[i], r[i + S], std::make_integer_sequence<int, W>());
    transpose<2 * S>(r);
  }
}
// Lane j: the sum of r[j]'s lanes, of `lanes` vectors. A transpose that adds as it goes; r is overwritten.
template <int S = 1, class T>
FUSEDRNN_INLINE Vec<T> sum_lanes(Vec<T>* r) {
  constexpr int W = Vec<T>::lanes;
  if constexpr (S < W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; i += 2 * S) {
      swap_blocks<S>(r[i], r[i + S], std::make_integer_sequence<int, W>());
      r[i] = r[i] + r[i + S];
    }
    return sum_lanes<2 * S>(r);
  }
  return r[0];
}
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
