// Launches the time-step kernel, once a step. No synchronisation and no graph of its own: a CUDA graph can capture it.
#include "cuda/launch.h"
#include "cuda/run.h"
#include "cuda/step.h"

namespace fusedrnn::cuda {
namespace {
// Batch tiles get smaller, although W_hh is read once a tile, until the GPU is full. The stand-in is full soon: so its
// tests see every size.
#if defined(FUSEDRNN_HOST_DEVICE)
constexpr int64_t kEnoughCtas = 4;
#else
constexpr int64_t kEnoughCtas = 128;
#endif

int64_t state_bytes(const Call& call) {
  const Problem& n = call.problem;
  const int64_t bytes = n.S * n.B * n.H * (call.precision == Precision::fp64 ? 8 : 4);
  return (bytes + 255) / 256 * 256;
}

template <class P, class C, Pass kPass>
void run_steps(const Call& call, void* scratch, void* stream) {
  using Tile = StepTile<P, C, kPass>;
  const Problem& n = call.problem;
  StepCall given{call, scratch, static_cast<char*>(scratch) + state_bytes(call), kTileRows};
  const int64_t units = (n.H + Tile::kUnits - 1) / Tile::kUnits;
  auto ctas = [&] { return n.S * units * ((n.B + given.tile_rows - 1) / given.tile_rows); };
  while (given.tile_rows > 8 && ctas() < kEnoughCtas) given.tile_rows /= 2;
  constexpr bool kForward = kPass == Pass::forward;
  const int64_t last = kForward ? n.T - 1 : call.dh0 || call.dc0 ? -1 : 0;
  const void* const kernel = reinterpret_cast<const void*>(time_step<P, C, kPass>);
  for (int64_t step = kForward ? 0 : n.T - 1; kForward ? step <= last : step >= last; step += kForward ? 1 : -1) {
    launch_kernel(kernel, {static_cast<int>(ctas()), kStepThreads, 1, Tile::kSmemBytes}, stream, given, step);
  }
}

template <class P, class C>
void run_pass(const Call& call, void* scratch, void* stream) {
  (call.pass == Pass::forward ? run_steps<P, C, Pass::forward> : run_steps<P, C, Pass::backward>)(call, scratch,
                                                                                                  stream);
}

template <class P>
void run_cell(const Call& call, void* scratch, void* stream) {
  switch (call.problem.cell) {
    case kGru:
      return run_pass<P, Gru>(call, scratch, stream);
    case kLstm:
      return run_pass<P, Lstm>(call, scratch, stream);
    case kRnnTanh:
      return run_pass<P, Rnn<false>>(call, scratch, stream);
    default:
      return run_pass<P, Rnn<true>>(call, scratch, stream);
  }
}
}  // namespace

size_t step_scratch_bytes(const Call& call) { return state_bytes(call) * (has_c(call.problem.cell) ? 2 : 1); }

void run_step(const Call& call, void* scratch, void* stream) {
  switch (call.precision) {
    case Precision::bf16:
      return run_cell<Bf16>(call, scratch, stream);
    case Precision::fp16:
      return run_cell<Fp16>(call, scratch, stream);
    case Precision::tf32:
      return run_cell<Tf32>(call, scratch, stream);
    case Precision::fp32:
      return run_cell<Fp32>(call, scratch, stream);
    case Precision::fp64:
      return run_cell<Fp64>(call, scratch, stream);
  }
}
}  // namespace fusedrnn::cuda
