// Launches the time-step kernels with layer normalisation: two a step, on one stream. A CUDA graph can capture them.
#include "cuda/norm_step.h"
#include "cuda/run.h"
#include "cuda/step_launch.h"

namespace fusedrnn::cuda {
namespace {
int64_t sums_bytes(const Call& call) { return kGatesOf[call.problem.cell] * state_bytes(call); }

// Both RNNs have the same products.
template <class C>
using ProductCell = std::conditional_t<C::kGates == 1, Rnn<false>, C>;

template <class P, class C, Pass kPass>
void run_steps(const Call& call, const NormTensors& norms, void* scratch, void* stream) {
  using Tile = StepTile<P, C, kPass>;
  const StepLaunch steps(call, scratch, Tile::kUnits);
  const NormStepCall given{steps.given, norms, static_cast<char*>(scratch) + step_scratch_bytes(call)};
  const Launch products{static_cast<int>(steps.ctas), kStepThreads, 1, Tile::kSmemBytes};
  const Launch rows{static_cast<int>(call.problem.S * call.problem.B), kRowThreads, 1,
                    kRowAdditions * kRowWarps * static_cast<int>(sizeof(typename Tile::Number))};
  const void* const product = reinterpret_cast<const void*>(norm_product<P, ProductCell<C>, kPass>);
  const void* const row = reinterpret_cast<const void*>(norm_row<P, C, kPass>);
  steps.each([&](int64_t step) {
    if (kPass == Pass::backward || step >= 0) launch_kernel(product, products, stream, given, step);
    launch_kernel(row, rows, stream, given, step);
  });
}
}  // namespace

size_t norm_step_scratch_bytes(const Call& call) { return step_scratch_bytes(call) + sums_bytes(call); }

void run_norm_step(const Call& call, const NormTensors& norms, void* scratch, void* stream) {
  with_types(call, [&]<class P, class C>() {
    const bool forward = call.pass == Pass::forward;
    (forward ? run_steps<P, C, Pass::forward> : run_steps<P, C, Pass::backward>)(call, norms, scratch, stream);
  });
}
}  // namespace fusedrnn::cuda
