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

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t state_bytes(const Call& call) {
  const Problem& n = call.problem;
  return aligned(n.S * n.B * n.H * (call.precision == Precision::fp64 ? 8 : 4));
}
// Of the buffers that are read in place of y.
int64_t seen_bytes(const Call& call) {
  const Problem& n = call.problem;
  if (call.pass == Pass::backward || call.noise.dropout <= 0) return 0;
  return aligned(2 * n.S * n.B * n.H * element_bytes(call.precision));
}
int64_t states(const Call& call) { return has_c(call.problem.cell) ? 2 : 1; }

template <class P, class C, Pass kPass, bool kNoise>
void run_steps(const Call& call, void* scratch, void* stream) {
  using Tile = StepTile<P, C, kPass>;
  const Problem& n = call.problem;
  char* const memory = static_cast<char*>(scratch);
  void* const seen = seen_bytes(call) ? memory + states(call) * state_bytes(call) : nullptr;
  StepCall given{call, memory, memory + state_bytes(call), seen, kTileRows};
  const int64_t units = (n.H + Tile::kUnits - 1) / Tile::kUnits;
  auto ctas = [&] { return n.S * units * ((n.B + given.tile_rows - 1) / given.tile_rows); };
  while (given.tile_rows > 8 && ctas() < kEnoughCtas) given.tile_rows /= 2;
  constexpr bool kForward = kPass == Pass::forward;
  const int64_t first = !kForward ? n.T - 1 : seen ? -1 : 0, last = kForward ? n.T - 1 : call.dh0 || call.dc0 ? -1 : 0;
  const void* const kernel = reinterpret_cast<const void*>(time_step<P, C, kPass, kNoise>);
  for (int64_t step = first; kForward ? step <= last : step >= last; step += kForward ? 1 : -1) {
    launch_kernel(kernel, {static_cast<int>(ctas()), kStepThreads, 1, Tile::kSmemBytes}, stream, given, step);
  }
}

template <class P, class C, bool kNoise>
void run_either(const Call& call, void* scratch, void* stream) {
  const bool forward = call.pass == Pass::forward;
  (forward ? run_steps<P, C, Pass::forward, kNoise> : run_steps<P, C, Pass::backward, kNoise>)(call, scratch, stream);
}
template <class P, class C>
void run_pass(const Call& call, void* scratch, void* stream) {
  (call.noise.any() ? run_either<P, C, true> : run_either<P, C, false>)(call, scratch, stream);
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

size_t step_scratch_bytes(const Call& call) { return states(call) * state_bytes(call) + seen_bytes(call); }

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
