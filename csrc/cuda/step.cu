// Launches the time-step kernel, once a step. No synchronisation and no graph of its own: a CUDA graph can capture it.
#include "cuda/run.h"
#include "cuda/step_launch.h"

namespace fusedrnn::cuda {
namespace {
template <class P, class C, Pass kPass, bool kNoise>
void run_steps(const Call& call, void* scratch, void* stream) {
  using Tile = StepTile<P, C, kPass>;
  const StepLaunch steps(call, scratch, Tile::kUnits);
  const Launch launch{static_cast<int>(steps.ctas), kStepThreads, 1, Tile::kSmemBytes};
  const void* const kernel = reinterpret_cast<const void*>(time_step<P, C, kPass, kNoise>);
  steps.each([&](int64_t step) { launch_kernel(kernel, launch, stream, steps.given, step); });
}

template <class P, class C, bool kNoise>
void run_either(const Call& call, void* scratch, void* stream) {
  const bool forward = call.pass == Pass::forward;
  (forward ? run_steps<P, C, Pass::forward, kNoise> : run_steps<P, C, Pass::backward, kNoise>)(call, scratch, stream);
}
}  // namespace

size_t step_scratch_bytes(const Call& call) {
  return states(call) * state_bytes(call) + reset_bytes(call) + seen_bytes(call);
}

void run_step(const Call& call, void* scratch, void* stream) {
  with_types(call, [&]<class P, class C>() {
    (call.noise.any() ? run_either<P, C, true> : run_either<P, C, false>)(call, scratch, stream);
  });
}
}  // namespace fusedrnn::cuda
