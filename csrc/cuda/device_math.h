// The precisions and what is computed in them: tensor-core products, conversions, sigmoid and tanh. Part of
// device_api.h; host_device/device_math.h is its twin for g++.
#pragma once
#include <stdint.h>
#define FUSEDRNN_DEVICE __device__ __forceinline__

namespace fusedrnn::cuda {
// PACK: elements of a 32-bit word. Tf32 and Fp32 are both float in memory. Tf32: operands of products rounded to 11
// significant bits. Fp32: products in full precision.
struct Bf16 {
  static constexpr int PACK = 2;
};
struct Fp16 {
  static constexpr int PACK = 2;
};
struct Tf32 {
  static constexpr int PACK = 1;
};
struct Fp32 {
  static constexpr int PACK = 1;
};

// Tensor core: C += A B. 16-bit: m16n8k16, tf32: m16n8k8.
#define FUSEDRNN_MMA(P, shape)                                                                      \
  template <>                                                                                       \
  FUSEDRNN_DEVICE void mma<P>(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {            \
    asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                   \
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));                       \
  }
template <class P>
FUSEDRNN_DEVICE void mma(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1);
FUSEDRNN_MMA(Bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
FUSEDRNN_MMA(Fp16, "m16n8k16.row.col.f32.f16.f16.f32")
FUSEDRNN_MMA(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FUSEDRNN_MMA

// x = high + low exactly, high with the 11 significant bits of tf32. The volatile form is for the weights: a plain
// expression is invariant in the time loop, and the compiler would keep both halves in registers.
FUSEDRNN_DEVICE uint32_t tf32_high(uint32_t x) { return x & 0xffffe000u; }
FUSEDRNN_DEVICE uint32_t tf32_low(uint32_t x) {
  return __float_as_uint(__uint_as_float(x) - __uint_as_float(tf32_high(x)));
}
FUSEDRNN_DEVICE void tf32_split_here(uint32_t x, uint32_t& high, uint32_t& low) {
  asm volatile(
      "{.reg .f32 a, b; and.b32 %0, %2, 0xffffe000; mov.b32 a, %2; mov.b32 b, %0; sub.f32 a, a, b; mov.b32 %1, a;}"
      : "=&r"(high), "=r"(low)
      : "r"(x));
}
// What the producer (or, where the producer must not, the reader) does to an element before the product.
template <class P>
FUSEDRNN_DEVICE uint32_t operand(uint32_t v) {
  return v;
}
template <>
FUSEDRNN_DEVICE uint32_t operand<Tf32>(uint32_t v) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(v)));
  return rounded;
}
// Transposes the 8x8 matrix of 16-bit elements whose row (lane / 4), columns 2 (lane % 4) + {0, 1} this lane holds.
FUSEDRNN_DEVICE uint32_t movmatrix(uint32_t v) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(v));
  return transposed;
}

template <class P>
FUSEDRNN_DEVICE uint32_t pack2(float low, float high);
template <>
FUSEDRNN_DEVICE uint32_t pack2<Bf16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
FUSEDRNN_DEVICE uint32_t pack2<Fp16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <class P>
FUSEDRNN_DEVICE void unpack2(uint32_t v, float& low, float& high);
template <>
FUSEDRNN_DEVICE void unpack2<Bf16>(uint32_t v, float& low, float& high) {
  low = __uint_as_float(v << 16);
  high = __uint_as_float(v & 0xffff0000u);
}
template <>
FUSEDRNN_DEVICE void unpack2<Fp16>(uint32_t v, float& low, float& high) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(low), "=f"(high) : "r"(v));
}
FUSEDRNN_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
FUSEDRNN_DEVICE float bits_float(uint32_t x) { return __uint_as_float(x); }

// 16-bit storage: one instruction, 2^-11 absolute.
FUSEDRNN_DEVICE float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FUSEDRNN_DEVICE float sigmoid_fast(float x) { return fmaf(0.5f, tanh_fast(0.5f * x), 0.5f); }
// 32-bit storage: 2^-22 absolute, and relative near 0.
FUSEDRNN_DEVICE float sigmoid_exact(float x) {
  float power, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.442695041f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.f + power));
  return y;
}
FUSEDRNN_DEVICE float tanh_exact(float x) {
  const float square = x * x;
  const float series =
      fmaf(square, fmaf(square, fmaf(square, 0.0218694885f, -0.0539682540f), 0.1333333333f), -0.3333333333f);
  return fabsf(x) < 0.25f ? x + x * square * series : fmaf(2.f, sigmoid_exact(2.f * x), -1.f);
}
template <class P>
FUSEDRNN_DEVICE float tanh_of(float x) {
  if constexpr (P::PACK == 2)
    return tanh_fast(x);
  else
    return tanh_exact(x);
}
template <class P>
FUSEDRNN_DEVICE float sigmoid_of(float x) {
  if constexpr (P::PACK == 2)
    return sigmoid_fast(x);
  else
    return sigmoid_exact(x);
}
}  // namespace fusedrnn::cuda
