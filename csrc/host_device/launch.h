// Runs a kernel on the stand-in: makes the CTAs' fibers and schedules them until all have returned or one has failed.
#pragma once
#include <mutex>

#include "host_device/machine.h"

namespace fusedrnn::host_device {
extern "C" inline void fusedrnn_fiber_entry() {
  machine()->kernel();
  Fiber* const f = current();
  f->done = true;
  f->warp->cta->alive--;
  f->warp->alive--;
  if (f->warp->alive && f->warp->arrived == f->warp->alive)
    note_error("a lane left its warp, which waits in a collective");
  wait();
}

inline void make_cta(Machine& m, Cta& c, int id, int index, Barrier* cluster, int threads, int smem_bytes) {
  c.id = id, c.index = index, c.alive = threads, c.cluster = cluster;
  c.smem.assign((smem_bytes + 7) / 8 + kGuardWords, ~uint64_t(0));  // NaN in every precision
  c.warps = std::vector<Warp>((threads + 31) / 32);
  c.fibers = std::vector<Fiber>(threads);
  const bool slow_cta = m.random() % 4 == 0;
  for (Warp& w : c.warps) w.slow = slow_cta || m.random() % 8 == 0;
  for (int thread = 0; thread < threads; thread++) {
    Fiber& f = c.fibers[thread];
    f.thread = thread;
    f.warp = &c.warps[thread / 32];
    f.warp->cta = &c;
    f.warp->lanes.push_back(&f);
    f.warp->alive++;
    f.top = f.stack.start(fusedrnn_fiber_entry);
    f.ready = false;
    mark_ready(&f);
  }
}

inline void schedule(Machine& m, long threads) {
  long skipped = 0;
  while (!m.ready.empty() && m.error.empty()) {
    if (!m.stores.empty() && m.random() % 4 == 0)
      for (size_t n = 1 + m.stores.size() / 64; n-- && !m.stores.empty();) deliver(m.random() % m.stores.size());
    Warp* const w = m.ready[m.random() % m.ready.size()];
    // slow warps and CTAs lag far behind
    if (w->slow && m.random() % 64 && ++skipped < 64 * long(m.ready.size())) continue;
    skipped = 0;
    const unsigned first = m.random();
    for (size_t i = 0; i < w->lanes.size() && m.error.empty(); i++) {
      Fiber* const f = w->lanes[(first + i) % w->lanes.size()];
      if (!f->ready) continue;
      m.current = f;
      fusedrnn_switch_fiber(&m.scheduler, f->top);
    }
    if (m.polls > 2000 * threads && m.stores.empty()) note_error("livelock: every running thread polls");
    if (m.ready.empty() && !m.stores.empty()) deliver(0);
  }
  while (!m.stores.empty()) deliver(m.random() % m.stores.size());
}

inline void find_faults(const Machine& m) {
  for (const Cta& c : m.ctas) {
    for (const Fiber& f : c.fibers)
      if (!f.done)
        note_error("deadlock: thread " + std::to_string(f.thread) + " of CTA " + std::to_string(c.id) +
                   " never finished");
    for (int i = 1; i <= kGuardWords; i++)
      if (c.smem[c.smem.size() - i] != ~uint64_t(0))
        note_error("store behind the shared memory of CTA " + std::to_string(c.id));
  }
}

// CTAs first .. first + count - 1, all resident at once.
inline void launch_wave(int first, int count, int threads, int cluster, int smem_bytes, unsigned seed,
                        const std::function<void()>& kernel) {
  Machine m;
  m.cluster = cluster;
  m.kernel = kernel;
  m.random.seed(seed);
  Machine* const outer = machine();
  machine() = &m;
  m.ctas = std::vector<Cta>(count);
  std::vector<Barrier> clusters((count + cluster - 1) / cluster);
  for (int i = 0; i < count; i++) make_cta(m, m.ctas[i], first + i, i, &clusters[i / cluster], threads, smem_bytes);
  schedule(m, long(count) * threads);
  if (m.error.empty()) find_faults(m);
  machine() = outer;
  if (!m.error.empty()) throw std::runtime_error(m.error);
}

// `resident`: how many CTAs run at a time, a multiple of the cluster; 0: all of them, as a cooperative launch has it.
inline void launch(int grid, int threads, int cluster, int smem_bytes, unsigned seed,
                   const std::function<void()>& kernel, int resident = 0) {
  static std::recursive_mutex mutex;  // there is one machine
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (!resident) resident = grid;
  for (int first = 0; first < grid; first += resident)
    launch_wave(first, std::min(resident, grid - first), threads, cluster, smem_bytes, seed + unsigned(first), kernel);
}
}  // namespace fusedrnn::host_device
