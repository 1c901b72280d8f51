// A barrier that spins: a time step takes a few microseconds, and waking a sleeping thread takes longer.
#pragma once
#include <sched.h>
#include <stdint.h>

namespace fusedrnn::cpu::FUSEDRNN_ISA {
struct Barrier {
  int64_t* epochs;  // thread i of the team owns epochs[8 i]: a cache line of its own
  int threads, me;
  int64_t now = 0;

  void wait() {
    if (threads == 1) return;
    now++;
    __atomic_store_n(epochs + 8 * me, now, __ATOMIC_RELEASE);
    for (int i = 0; i < threads; i++)
      for (int spins = 0; __atomic_load_n(epochs + 8 * i, __ATOMIC_ACQUIRE) < now;) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (++spins > 2000) sched_yield(), spins = 0;  // more threads than cores
      }
  }
};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
