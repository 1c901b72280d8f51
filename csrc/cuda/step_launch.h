// What the launches of the time-step kernels share: their scratch, the batch rows of a CTA, and the types of a call.
#pragma once
#include "cuda/launch.h"
#include "cuda/step.h"

namespace fusedrnn::cuda {
// Batch tiles get smaller, although W_hh is read once a tile, until the GPU is full. The stand-in is full soon: so its
// tests see every size.
#if defined(FUSEDRNN_HOST_DEVICE)
constexpr int64_t kEnoughCtas = 4;
#else
constexpr int64_t kEnoughCtas = 128;
#endif

inline int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
// Of one number a unit, in full precision.
inline int64_t state_bytes(const Call& call) {
  const Problem& n = call.problem;
  return aligned(n.S * n.B * n.H * (call.precision == Precision::fp64 ? 8 : 4));
}
// Of the buffers that are read in place of y.
inline int64_t seen_bytes(const Call& call) {
  const Problem& n = call.problem;
  if (call.pass == Pass::backward || call.noise.dropout <= 0) return 0;
  return aligned(2 * n.S * n.B * n.H * element_bytes(call.precision));
}
inline int64_t states(const Call& call) { return has_c(call.problem.cell) ? 2 : 1; }
// Of the sums of gradients of what resets go back to.
inline int64_t reset_bytes(const Call& call) {
  return call.pass == Pass::backward && call.reset_h ? states(call) * state_bytes(call) : 0;
}

// A call, its scratch, and the CTAs of a launch.
struct StepLaunch {
  StepCall given;
  int64_t ctas;
  int64_t first, last;  // step, in the order of the launches; -1: what comes before the first, or is left behind it

  StepLaunch(const Call& call, void* scratch, int tile_units)
      : given{call, scratch, nullptr, nullptr, nullptr, nullptr, kTileRows} {
    const Problem& n = call.problem;
    char* const memory = static_cast<char*>(scratch);
    char* const behind = memory + states(call) * state_bytes(call);
    given.c = memory + state_bytes(call);
    if (reset_bytes(call)) given.reset_h = behind, given.reset_c = behind + state_bytes(call);
    if (seen_bytes(call)) given.seen = behind;
    const int64_t units = (n.H + tile_units - 1) / tile_units;
    const auto count = [&] { return n.S * units * ((n.B + given.tile_rows - 1) / given.tile_rows); };
    while (given.tile_rows > 8 && count() < kEnoughCtas) given.tile_rows /= 2;
    ctas = count();
    const bool forward = call.pass == Pass::forward;
    first = !forward ? n.T - 1 : given.seen ? -1 : 0, last = forward ? n.T - 1 : call.dh0 || call.dc0 ? -1 : 0;
  }

  template <class Run>
  void each(Run run) const {
    const int64_t move = first <= last ? 1 : -1;
    for (int64_t step = first; step != last + move; step += move) run(step);
  }
};

// run.operator()<P, C>() with the precision and cell of a call.
template <class P, class Run>
void with_cell(const Call& call, const Run& run) {
  switch (call.problem.cell) {
    case kGru:
      return run.template operator()<P, Gru>();
    case kLstm:
      return run.template operator()<P, Lstm>();
    case kRnnTanh:
      return run.template operator()<P, Rnn<false>>();
    default:
      return run.template operator()<P, Rnn<true>>();
  }
}
template <class Run>
void with_types(const Call& call, const Run& run) {
  switch (call.precision) {
    case Precision::bf16:
      return with_cell<Bf16>(call, run);
    case Precision::fp16:
      return with_cell<Fp16>(call, run);
    case Precision::tf32:
      return with_cell<Tf32>(call, run);
    case Precision::fp32:
      return with_cell<Fp32>(call, run);
    case Precision::fp64:
      return with_cell<Fp64>(call, run);
  }
}
}  // namespace fusedrnn::cuda
