// All that kernels do beyond plain C++ goes through these functions; PTX is nowhere else. host_device/device_api.h has
// the same names for g++, so that the kernels run on a CPU.
#pragma once
#if !defined(__CUDACC__)
#include "host_device/device_api.h"
#else
#include "cuda/device_math.h"
#include "cuda/device_memory.h"
#define FUSEDRNN_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)

namespace fusedrnn::cuda {
FUSEDRNN_DEVICE int lane_id() { return static_cast<int>(threadIdx.x & 31); }
FUSEDRNN_DEVICE int warp_id() { return static_cast<int>(threadIdx.x >> 5); }
FUSEDRNN_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
FUSEDRNN_DEVICE int block_id() { return static_cast<int>(blockIdx.x); }
FUSEDRNN_DEVICE char* smem_base() {
  extern __shared__ __align__(1024) char fusedrnn_smem[];
  return fusedrnn_smem;
}
FUSEDRNN_DEVICE uint32_t smem_u32(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Barriers of the CTA and of a warp, and what lanes tell each other.
FUSEDRNN_DEVICE void cta_sync() { __syncthreads(); }
FUSEDRNN_DEVICE void warp_sync() { __syncwarp(); }
FUSEDRNN_DEVICE bool vote_any(bool x) { return __any_sync(0xffffffffu, x); }
template <class T>
FUSEDRNN_DEVICE T lane_xor(T x, int lanes) {  // the x of the lane whose number differs in these bits
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}
FUSEDRNN_DEVICE void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Clusters of CTAs and mbarriers, from sm_90 on.
using Dsm = uint32_t;  // an address in the shared memory of some CTA of the cluster
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
FUSEDRNN_DEVICE int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
FUSEDRNN_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
FUSEDRNN_DEVICE void mbar_init(void* b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(b)), "r"(count) : "memory");
}
FUSEDRNN_DEVICE void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
FUSEDRNN_DEVICE void mbar_arrive_expect(void* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(b)), "r"(bytes) : "memory");
}
// Scope cta is enough: what is waited for are shared-memory bytes delivered by st.async, counted by the barrier itself.
// (Scope cluster makes ptxas add CCTL.IVALL, an invalidation of the whole L1, to every wait.)
FUSEDRNN_DEVICE void mbar_wait(void* b, int parity) {
#if defined(FUSEDRNN_BOUND_SPINS)
  unsigned looks = 0;
  for (uint32_t done = 0; !done; spin(looks))
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(smem_u32(b)), "r"(parity)
                 : "memory");
#else
  asm volatile(
      "{\n.reg .pred p;\nW:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra W;\n}" ::"r"(smem_u32(b)),
      "r"(parity)
      : "memory");
#endif
}
FUSEDRNN_DEVICE Dsm dsm_map(const void* p, int rank) {
  Dsm address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(smem_u32(p)), "r"(rank));
  return address;
}
// Stores that the mbarrier `bar`, in the same CTA as `to`, counts in bytes when they have arrived.
FUSEDRNN_DEVICE void st_async4(Dsm to, Dsm bar, uint32_t v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(v), "r"(bar)
               : "memory");
}
FUSEDRNN_DEVICE void st_async8(Dsm to, Dsm bar, uint2 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(to), "r"(v.x),
               "r"(v.y), "r"(bar)
               : "memory");
}
FUSEDRNN_DEVICE void st_async16(Dsm to, Dsm bar, float a, float b, float c, float d) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
               "f"(a), "f"(b), "f"(c), "f"(d), "r"(bar)
               : "memory");
}
#endif
}  // namespace fusedrnn::cuda
#endif
