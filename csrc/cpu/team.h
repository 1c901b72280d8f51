// Runs a kernel call on torch's threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/kernel.h"
#include "cpu/pool.h"
#include "tensors.h"

namespace fusedrnn::cpu {
// Runs body(0) to body(n - 1) at once, one a thread. Returns n, or, where torch has a smaller team to give (a nested or
// limited caller), that team's size, having run nothing: threads of a call wait for each other, so half a team would
// wait for ever. parallel_for cuts its range evenly over the threads that are really there, so the length of a piece
// tells how many those are.
template <class F>
int run_at_once(int n, const F& body) {
  if (n == 1) return body(0), 1;
  constexpr int64_t kPiece = 1 << 20;
  std::atomic<int> team{n};
  torch::stable::parallel_for(0, n * kPiece, kPiece, [&](int64_t begin, int64_t end) {
    if (end - begin == kPiece) return body(int(begin / kPiece));
    if (begin == 0) team = int((n * kPiece + end - 1) / end);
  });
  return team;
}

// What a forward pass computes in: bfloat16 itself only where nothing is kept for backward and there is no noise.
inline ScalarType forward_type(ScalarType type, bool save_or_noise) {
  return type == ScalarType::BFloat16 && !save_or_noise && multiplies_bfloat() ? type : compute_type(type);
}
template <class Run>
void run_in(ScalarType compute, const Run& run) {
  switch (compute) {
    case ScalarType::Double:
      return run(0.);
    case ScalarType::Float:
      return run(0.f);
    default:
      return run(Bfloat{});
  }
}

// Plans, gives scratch memory and runs until a team of the planned size was to be had.
// plan(machine) -> Plan; scratch(plan) -> elements; run(thread).
template <class T, class Call, class PlanFor, class Scratch, class Run>
void run_call(Call& call, const PlanFor& plan, const Scratch& scratch, const Run& run) {
  for (int threads = int(torch::stable::get_num_threads());;) {
    call.plan = plan(machine(threads));
    const int planned = call.plan.threads();
    const Workspace memory(size_t(scratch(call.plan)) * sizeof(T));
    std::vector<int64_t> epochs(planned > 1 ? 8 * planned + 8 : 8);
    call.scratch = memory.as<T>();
    call.epochs = epochs.data();
    const int team = run_at_once(planned, run);
    if (team == planned) return;
    threads = std::max(1, std::min(team, threads - 1));
  }
}
}  // namespace fusedrnn::cpu
