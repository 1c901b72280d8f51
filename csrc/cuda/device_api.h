// The only header of the kernels that touches PTX.  Everything a kernel does beyond plain C++ goes through
// these functions; shim/device_api_host.h implements the same names for g++ so the kernels run on a CPU.
#pragma once
#if !defined(__CUDACC__)
#include "host_device/device_api.h"
#else
#include <cstdint>
#define FR_DEV __device__ __forceinline__
#define FR_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
namespace fusedrnn::cuda {

// PACK: elements per 32-bit word.  Tf32: fp32 storage, operands rounded to 11 bits; Fp32: fp32 storage, 3xTF32 products.
struct Bf16 { static constexpr int PACK = 2; };
struct Fp16 { static constexpr int PACK = 2; };
struct Tf32 { static constexpr int PACK = 1; };
struct Fp32 { static constexpr int PACK = 1; };

FR_DEV int lane_id() { return threadIdx.x & 31; }
FR_DEV int warp_id() { return threadIdx.x >> 5; }
FR_DEV int thread_id() { return threadIdx.x; }
FR_DEV int block_id() { return blockIdx.x; }
FR_DEV char* smem_base() { extern __shared__ __align__(1024) char fr_smem[]; return fr_smem; }
FR_DEV uint32_t smem_u32(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- tensor core ----
template <class P> FR_DEV void mma(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1);
template <> FR_DEV void mma<Bf16>(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
template <> FR_DEV void mma<Fp16>(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
template <> FR_DEV void mma<Tf32>(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {   // m16n8k8
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
// x = high + low exactly, high with the 11 significant bits of tf32.  The volatile form is for the weights: a plain expression
// is invariant in the time loop, and the compiler would keep both halves in registers.
FR_DEV uint32_t tf32_high(uint32_t x) { return x & 0xffffe000u; }
FR_DEV uint32_t tf32_low(uint32_t x) { return __float_as_uint(__uint_as_float(x) - __uint_as_float(tf32_high(x))); }
FR_DEV void tf32_split_here(uint32_t x, uint32_t& high, uint32_t& low) {
  asm volatile("{.reg .f32 a, b; and.b32 %0, %2, 0xffffe000; mov.b32 a, %2; mov.b32 b, %0; sub.f32 a, a, b; mov.b32 %1, a;}"
      : "=&r"(high), "=r"(low) : "r"(x));
}
// what the producer (or, where the producer must not, the reader) does to an element before the product
template <class P> FR_DEV uint32_t operand(uint32_t v) { return v; }
template <> FR_DEV uint32_t operand<Tf32>(uint32_t v) { uint32_t r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(v))); return r; }
// Transposes the 8x8 matrix of 16-bit elements whose row (lane/4), columns 2*(lane%4)+{0,1} this lane holds.
FR_DEV uint32_t movmatrix(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

// ---- conversions and activations ----
template <class P> FR_DEV uint32_t pack2(float lo, float hi);
template <> FR_DEV uint32_t pack2<Bf16>(float lo, float hi) {
  uint32_t r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r;
}
template <> FR_DEV uint32_t pack2<Fp16>(float lo, float hi) {
  uint32_t r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r;
}
template <class P> FR_DEV void unpack2(uint32_t v, float& lo, float& hi);
template <> FR_DEV void unpack2<Bf16>(uint32_t v, float& lo, float& hi) {
  lo = __uint_as_float(v << 16); hi = __uint_as_float(v & 0xffff0000u);
}
template <> FR_DEV void unpack2<Fp16>(uint32_t v, float& lo, float& hi) {
  asm("{.reg .b16 l,h; mov.b32 {l,h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(lo), "=f"(hi) : "r"(v));
}
FR_DEV uint32_t float_bits(float x) { return __float_as_uint(x); }
FR_DEV float bits_float(uint32_t x) { return __uint_as_float(x); }
FR_DEV float tanh_fast(float x) { float r; asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
FR_DEV float sigmoid_fast(float x) { return fmaf(0.5f, tanh_fast(0.5f * x), 0.5f); }
// 32-bit storage: 2^-22 absolute, and relative near 0
FR_DEV float sigmoid_exact(float x) {
  float e; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-1.442695041f * x));
  float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.f + e)); return r;
}
FR_DEV float tanh_exact(float x) {
  const float y = x * x, small = x + x * y * fmaf(y, fmaf(y, fmaf(y, 0.0218694885f, -0.0539682540f), 0.1333333333f), -0.3333333333f);
  return fabsf(x) < 0.25f ? small : fmaf(2.f, sigmoid_exact(2.f * x), -1.f);
}
template <class P> FR_DEV float tanh_of(float x) { if constexpr (P::PACK == 2) return tanh_fast(x); else return tanh_exact(x); }
template <class P> FR_DEV float sigmoid_of(float x) { if constexpr (P::PACK == 2) return sigmoid_fast(x); else return sigmoid_exact(x); }

// ---- barriers inside the CTA ----
FR_DEV void cta_sync() { __syncthreads(); }
FR_DEV void warp_sync() { __syncwarp(); }
FR_DEV bool vote_any(bool x) { return __any_sync(0xffffffffu, x); }
FR_DEV void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- global memory ----
FR_DEV uint4 ld_once16(const void* p) {   // volatile: the compiler must not sink the load into the time loop
  uint4 v; asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p)); return v;
}
FR_DEV uint2 ld8(const void* p) { uint2 v; asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p)); return v; }
// Predicated, zero where not `valid`: a branch instead makes the compiler compute the address anew behind every one of them.
FR_DEV uint32_t ld4_if(const void* p, bool valid) {
  uint32_t v; asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.u32 %0, [%1];}" : "=r"(v) : "l"(p), "r"((int)valid)); return v;
}
FR_DEV uint2 ld8_if(const void* p, bool valid) {
  uint2 v;
  asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.nc.v2.u32 {%0,%1}, [%2];}" : "=r"(v.x), "=r"(v.y) : "l"(p), "r"((int)valid));
  return v;
}
FR_DEV uint4 ld16_if(const void* p, bool valid) {
  uint4 v;
  asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; @p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p), "r"((int)valid));
  return v;
}
FR_DEV void st4_if(void* p, uint32_t v, bool valid) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p st.relaxed.gpu.global.u32 [%0], %1;}" ::"l"(p), "r"(v), "r"((int)valid) : "memory");
}
FR_DEV void st8_if(void* p, uint2 v, bool valid) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p st.relaxed.gpu.global.v2.u32 [%0], {%1,%2};}" ::"l"(p), "r"(v.x), "r"(v.y), "r"((int)valid) : "memory");
}
FR_DEV void st16_if(void* p, uint4 v, bool valid) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};}" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"((int)valid) : "memory");
}
FR_DEV uint32_t ld1(const void* p) { uint32_t v; asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p)); return v; }
FR_DEV void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
FR_DEV uint4 ld_l2_16(const void* p) {   // coherent: served by L2
  uint4 v; asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory"); return v;
}
FR_DEV uint32_t ld_acquire(const uint32_t* p) { uint32_t v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
FR_DEV void st_release(uint32_t* p, uint32_t v) { asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
FR_DEV void spin() {}

// ---- thread block clusters and mbarriers (sm_90 and later) ----
using Dsm = uint32_t;   // an address in the shared memory of some CTA of the cluster
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
FR_DEV int cluster_rank() { uint32_t r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
FR_DEV void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
FR_DEV void mbar_init(void* b, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(b)), "r"(count) : "memory"); }
FR_DEV void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
FR_DEV void mbar_arrive_expect(void* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(b)), "r"(bytes) : "memory");
}
// Scope cta is enough: what is waited for are shared-memory bytes delivered by st.async, counted by the barrier itself.
// (Scope cluster makes ptxas add CCTL.IVALL, an invalidation of the whole L1, to every wait.)
FR_DEV void mbar_wait(void* b, int parity) {
  asm volatile("{\n.reg .pred p;\nW:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra W;\n}" ::"r"(smem_u32(b)), "r"(parity) : "memory");
}
FR_DEV Dsm dsm_map(const void* p, int rank) {
  Dsm r; asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(smem_u32(p)), "r"(rank)); return r;
}
FR_DEV void st_async4(Dsm dst, Dsm bar, uint32_t v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(dst), "r"(v), "r"(bar) : "memory");
}
FR_DEV void st_async8(Dsm dst, Dsm bar, uint2 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(dst), "r"(v.x), "r"(v.y), "r"(bar) : "memory");
}
FR_DEV void st_async16(Dsm dst, Dsm bar, float a, float b, float c, float d) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(dst), "f"(a), "f"(b), "f"(c), "f"(d), "r"(bar) : "memory");
}
#endif
}  // namespace fusedrnn::cuda
#endif
