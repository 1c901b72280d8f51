// The GPU of the stand-in: CTAs, warps, barriers, stores in flight, and the scheduler.
//
// What a real GPU may do is done on purpose: warps run in random order, some warps and whole CTAs lag far behind, remote
// and global stores arrive late and out of order, and shared memory starts as NaNs. So a barrier or a wait that is
// missing shows up as a wrong result, a NaN, or one of the faults reported here (std::runtime_error from launch()):
// deadlock, livelock, lanes of a warp in different collectives, misaligned access, access outside the tensors, a store
// behind the shared memory or into a CTA that has exited, too many arrivals at an mbarrier.
#pragma once
#include <string.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "host_device/fibers.h"

namespace fusedrnn::host_device {
struct Cta;
struct Warp;

struct Fiber {
  Stack stack;
  void* top = nullptr;  // of the stack, while it does not run
  Warp* warp = nullptr;
  int thread = 0;
  bool ready = true, done = false;
  void* argument = nullptr;  // of the collective it waits in
};
struct Warp {
  Cta* cta = nullptr;
  std::vector<Fiber*> lanes;
  int alive = 0, ready = 0, arrived = 0;  // lanes: that have not returned, that can run, that wait in a collective
  int index = -1;                         // in Machine::ready
  bool slow = false;
  const void* collective = nullptr;
};
struct Barrier {
  int threads = 0;
  std::vector<Fiber*> waiting;
};
struct Cta {
  int id = 0, index = 0, alive = 0;  // in the grid, in the wave; threads that have not returned
  std::vector<uint64_t> smem;
  Barrier barriers[17];  // 16 named ones, and that of the whole CTA
  Barrier* cluster = nullptr;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
};
struct Mbarrier {  // as it lies in shared memory
  uint64_t phase : 1, count : 15, pending : 16;
  int64_t bytes : 32;  // expected and not yet there
};
static_assert(sizeof(Mbarrier) == 8, "an mbarrier has 8 bytes");
struct Store {  // in flight
  Cta* from;
  char* to;
  uint32_t words[4];
  int count;
  Mbarrier* barrier;  // null: to global memory
};

struct Machine {
  std::vector<Cta> ctas;
  std::vector<Warp*> ready;
  std::vector<Store> stores;
  int cluster = 1;
  void* scheduler = nullptr;  // its stack, while a fiber runs
  Fiber* current = nullptr;
  std::mt19937 random;
  long polls = 0;  // since something happened
  std::function<void()> kernel;
  std::string error;
};

constexpr int kGuardWords = 128;  // behind the shared memory of a CTA, to be found untouched

inline Machine*& machine() {
  static Machine* running = nullptr;
  return running;
}
// Of the launches to come: the order of warps and of stores.
inline unsigned& seed() {
  static unsigned value = 1;
  return value;
}
// The global memory that kernels may touch: first byte and size. Empty: any.
inline std::map<const char*, size_t>& memory() {
  static std::map<const char*, size_t> ranges;
  return ranges;
}
inline Fiber* current() { return machine()->current; }
inline Cta* cta() { return current()->warp->cta; }

inline void mark_ready(Fiber* f) {
  f->ready = true;
  Warp* const w = f->warp;
  if (w->ready++) return;
  w->index = int(machine()->ready.size());
  machine()->ready.push_back(w);
}
inline void mark_waiting(Fiber* f) {
  f->ready = false;
  Warp* const w = f->warp;
  auto& ready = machine()->ready;
  if (--w->ready) return;
  ready[w->index] = ready.back();
  ready[w->index]->index = w->index;
  ready.pop_back();
  w->index = -1;
}
inline void to_scheduler() { fusedrnn_switch_fiber(&current()->top, machine()->scheduler); }
inline void wait() {
  mark_waiting(current());
  to_scheduler();
}
inline void note_error(const std::string& text) {
  if (machine()->error.empty()) machine()->error = text;
}
[[noreturn]] inline void fail(const std::string& text) {
  const Fiber* const f = current();
  note_error(text + " (CTA " + std::to_string(cta()->id) + ", thread " + std::to_string(f->thread) + ")");
  for (;;) to_scheduler();
}
inline void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail("misaligned access to " + std::to_string(bytes) + " bytes");
}
inline void check_global(const void* p, size_t bytes) {
  check_aligned(p, bytes);
  if (memory().empty()) return;
  const char* const first = static_cast<const char*>(p);
  auto range = memory().upper_bound(first);
  if (range == memory().begin() || first + bytes > std::prev(range)->first + std::prev(range)->second)
    fail("access to global memory outside the tensors of the call");
}

inline void change(Mbarrier* b, int arrivals, int bytes) {
  if (arrivals > int(b->pending)) note_error("mbarrier: more arrivals than its count");
  b->pending -= arrivals;
  b->bytes += bytes;
  if (b->pending == 0 && b->bytes == 0) {
    b->phase ^= 1;
    b->pending = b->count;
  }
  machine()->polls = 0;
}
inline bool contains(const Cta& c, const char* p) {
  return p >= reinterpret_cast<const char*>(c.smem.data()) &&
         p < reinterpret_cast<const char*>(c.smem.data() + c.smem.size());
}
inline void deliver(size_t i) {
  auto& stores = machine()->stores;
  const Store s = stores[i];
  stores[i] = stores.back();
  stores.pop_back();
  if (s.barrier)
    for (const Cta& c : machine()->ctas)
      if (!c.alive && contains(c, s.to)) note_error("store to the shared memory of a CTA that has exited");
  memcpy(s.to, s.words, 4 * size_t(s.count));
  if (s.barrier) change(s.barrier, 0, -4 * s.count);
  machine()->polls = 0;
}
inline void meet(Barrier& b, int threads) {
  if (b.waiting.empty()) b.threads = threads;
  if (b.threads != threads) fail("threads disagree on the size of a barrier");
  if (int(b.waiting.size()) + 1 < threads) {
    b.waiting.push_back(current());
    wait();
    return;
  }
  machine()->polls = 0;
  for (Fiber* f : b.waiting) mark_ready(f);
  b.waiting.clear();
}
// All lanes of the warp call with the same operation; the last one runs it with every lane's argument.
template <class A>
void collective(A* argument, void (*operation)(A**)) {
  Fiber* const f = current();
  Warp* const w = f->warp;
  f->argument = argument;
  if (w->alive != 32) fail("a collective in a warp that a lane has left");
  if (w->arrived == 0) w->collective = reinterpret_cast<const void*>(operation);
  if (w->collective != reinterpret_cast<const void*>(operation)) fail("lanes of a warp execute different collectives");
  if (++w->arrived < w->alive) return wait();
  A* arguments[32];
  for (size_t i = 0; i < w->lanes.size(); i++) arguments[i] = static_cast<A*>(w->lanes[i]->argument);
  operation(arguments);
  w->arrived = 0;
  machine()->polls = 0;
  for (Fiber* lane : w->lanes)
    if (lane != f && !lane->done) mark_ready(lane);
}
}  // namespace fusedrnn::host_device
