// Global memory. Part of device_api.h.
//
// The predicated forms load zero, and store nothing, where not `valid`: a branch instead makes the compiler compute the
// address anew behind every one of them.
#pragma once
#include "cuda/device_math.h"

namespace fusedrnn::cuda {
// One number, as the compiler likes it; the stand-in checks that it lies in the tensors of the call.
template <class T>
FUSEDRNN_DEVICE T load_global(const T* p) {
  return *p;
}
template <class T>
FUSEDRNN_DEVICE void store_global(T* p, T v) {
  *p = v;
}

// Volatile: the compiler must not sink the load into the time loop.
FUSEDRNN_DEVICE uint4 ld_once16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
FUSEDRNN_DEVICE uint32_t ld1(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
FUSEDRNN_DEVICE uint32_t ld4_if(const void* p, bool valid) {
  uint32_t v;
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.u32 %0, [%1];}"
               : "=r"(v)
               : "l"(p), "r"(static_cast<int>(valid)));
  return v;
}
FUSEDRNN_DEVICE uint2 ld8_if(const void* p, bool valid) {
  uint2 v;
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.nc.v2.u32 {%0,%1}, [%2];}"
      : "=r"(v.x), "=r"(v.y)
      : "l"(p), "r"(static_cast<int>(valid)));
  return v;
}
FUSEDRNN_DEVICE uint4 ld16_if(const void* p, bool valid) {
  uint4 v;
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; "
      "@p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p), "r"(static_cast<int>(valid)));
  return v;
}
FUSEDRNN_DEVICE void st4_if(void* p, uint32_t v, bool valid) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p st.relaxed.gpu.global.u32 [%0], %1;}" ::"l"(p), "r"(v),
               "r"(static_cast<int>(valid))
               : "memory");
}
FUSEDRNN_DEVICE void st8_if(void* p, uint2 v, bool valid) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p st.relaxed.gpu.global.v2.u32 [%0], {%1,%2};}" ::"l"(p),
               "r"(v.x), "r"(v.y), "r"(static_cast<int>(valid))
               : "memory");
}
FUSEDRNN_DEVICE void st16_if(void* p, uint4 v, bool valid) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};}" ::"l"(p),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(static_cast<int>(valid))
               : "memory");
}

// What other CTAs write meanwhile: coherent, served by L2.
FUSEDRNN_DEVICE uint4 ld_l2_16(const void* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
// Between two looks at what others write. With FUSEDRNN_BOUND_SPINS who has looked for some seconds in vain ends the
// kernel with an error, where it would hang.
constexpr unsigned kMostLooks = 1u << 25;
FUSEDRNN_DEVICE void spin([[maybe_unused]] unsigned& looks) {
#if defined(FUSEDRNN_BOUND_SPINS)
  if (++looks > kMostLooks) __trap();
#endif
}
}  // namespace fusedrnn::cuda
