// Launches the planned kernels of a call. Kernels are pointers here, so this file needs the CUDA runtime's headers, no
// CUDA compiler; with FUSEDRNN_HOST_DEVICE it launches on the stand-in.
#include "cuda/run.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/footprint.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace fusedrnn::cuda {
namespace {
constexpr int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int blocks(int64_t threads) { return static_cast<int>((threads + kPackThreads - 1) / kPackThreads); }

template <int cell>
const KernelTable& kernels_of(Precision precision, Pass pass) {
  const bool forward = pass == Pass::forward;
  switch (precision) {
    case Precision::bf16:
      return forward ? kernels<cell, Precision::bf16, Pass::forward>()
                     : kernels<cell, Precision::bf16, Pass::backward>();
    case Precision::fp16:
      return forward ? kernels<cell, Precision::fp16, Pass::forward>()
                     : kernels<cell, Precision::fp16, Pass::backward>();
    case Precision::tf32:
      return forward ? kernels<cell, Precision::tf32, Pass::forward>()
                     : kernels<cell, Precision::tf32, Pass::backward>();
    default:
      return forward ? kernels<cell, Precision::fp32, Pass::forward>()
                     : kernels<cell, Precision::fp32, Pass::backward>();
  }
}
Kernel kernel_of(int row) {
  const Instance& i = kInstances[row];
  switch (i.cell) {  // NOLINT(bugprone-branch-clone): the branches differ in a template argument
    case kGru:
      return kernels_of<kGru>(i.precision, i.pass)[row];
    case kLstm:
      return kernels_of<kLstm>(i.precision, i.pass)[row];
    case kRnnTanh:
      return kernels_of<kRnnTanh>(i.precision, i.pass)[row];
    default:
      return kernels_of<kRnnRelu>(i.precision, i.pass)[row];
  }
}

// What a call needs beside its tensors: packed weights of all streams, then the cuts.
struct Scratch {
  int64_t weights, cuts;  // bytes
  int tiles;              // of 8 rows, of a stream

  Scratch(const Call& call, const Plan& plan) {
    const Problem& n = call.problem;
    const Instance& i = kInstances[plan.instance];
    tiles = plan.groups * i.group_rows() / 8;
    weights = aligned(n.S * kGatesOf[i.cell] * i.H * i.H * element_bytes(i.precision));
    cuts = call.rows.reset ? n.S * (n.T + 2) * tiles : 0;
  }
};

// A plan made for another table, or for another call, would write outside its memory.
void check_plan(const Call& call, const Plan& plan) {
  const auto refuse = [](const std::string& what) { throw std::runtime_error("fusedrnn: the plan " + what); };
  if (plan.instance < 0 || plan.instance >= static_cast<int>(kInstances.size()))
    refuse("names kernel " + std::to_string(plan.instance) + " of " + std::to_string(kInstances.size()));
  const Instance& i = kInstances[plan.instance];
  const Problem& n = call.problem;
  if (i.cell != n.cell || i.precision != call.precision || i.pass != call.pass)
    refuse("is of another cell, precision or pass");
  const bool masked = call.rows.masked() || call.offsets;
  if (n.H > i.H || n.H % 8 != 0 || ((masked || n.H != i.H) && !i.masked))
    refuse("has a kernel of H = " + std::to_string(i.H) + (i.masked ? "" : " without masks") +
           ", got H = " + std::to_string(n.H) + (masked ? " and masks" : ""));
  if (int64_t{plan.groups} * i.group_rows() < n.B)
    refuse("has " + std::to_string(plan.groups) + " groups, too few for " + std::to_string(n.B) + " rows");
  if (call.dgates || call.dcs) refuse("cannot take dgates or dcs");
  if (call.noise.any()) refuse("cannot take zoneout or recurrent dropout");
  if (call.reset_h) refuse("cannot take a state that resets go back to");
}

Params params_of(const Call& call, const Plan& plan, const char* packed, const uint8_t* cuts) {
  const Problem& n = call.problem;
  const auto in = [](const void* p) { return static_cast<const char*>(p); };
  const auto out = [](void* p) { return static_cast<char*>(p); };
  Params p{};
  p.T = static_cast<int>(n.T), p.B = static_cast<int>(n.B), p.S = static_cast<int>(n.S), p.H = static_cast<int>(n.H);
  p.directions = n.directions, p.groups = plan.groups;
  p.lengths = call.rows.lengths, p.length_s = call.rows.length_s, p.length_b = call.rows.length_b;
  p.offsets = call.offsets, p.cuts = cuts;
  p.w = packed, p.bias = in(call.bias), p.h0 = in(call.h0), p.c0 = in(call.c0), p.gates_x = in(call.gates_x);
  p.y = out(call.y), p.cs = out(call.cs), p.gates = out(call.gates), p.hn = out(call.hn), p.cn = out(call.cn);
  p.dy = in(call.dy), p.dhn = in(call.dhn), p.dcn = in(call.dcn);
  p.dgates_x = out(call.dgates_x), p.dq = out(call.dq), p.dh0 = out(call.dh0), p.dc0 = out(call.dc0);
  return p;
}

// The grid's outputs, filled with what no store produces.
void fill_output(const Call& call, void* output, int vectors, void* stream) {
  const Problem& n = call.problem;
  const int64_t row_bytes = vectors * n.H * element_bytes(call.precision), bytes = n.T * n.B * n.S * row_bytes;
  if (!output) return;
  if (!call.offsets) return fill_ones(output, bytes, stream);
  const FillParams p{static_cast<char*>(output), row_bytes,          call.offsets,          call.rows.lengths,
                     call.rows.length_s,         call.rows.length_b, static_cast<int>(n.T), static_cast<int>(n.B),
                     static_cast<int>(n.S)};
  launch_kernel(fill_rows_kernel(), {blocks(bytes / 16), kPackThreads}, stream, p);
}
void fill_outputs(const Call& call, void* stream) {
  if (call.pass == Pass::forward) return fill_output(call, call.y, 1, stream);
  fill_output(call, call.dgates_x, kGatesOf[call.problem.cell], stream);
  if (call.problem.cell == kGru) fill_output(call, call.dq, 1, stream);
}
}  // namespace

void poison(void* memory, size_t bytes, void* stream) { fill_ones(memory, static_cast<int64_t>(bytes), stream); }

const Instance* instances(size_t* count) {
  *count = kInstances.size();
  return kInstances.data();
}

Device device_of(int index) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(index); found != known.end()) return found->second;
  Device device = query_device(index);
  for (int k = 1; k < 5 && device.major >= 9; ++k) {  // a kernel of that size says how many fit, or one of any size
    int asked = -1;
    for (int row = static_cast<int>(kInstances.size()) - 1; row >= 0; --row)
      if (const int cluster = kInstances[row].cluster; cluster == 1 << k || (cluster > 1 && asked < 0)) asked = row;
    if (asked < 0) continue;
    const int threads = kInstances[asked].threads();
    device.max_clusters[k] = max_clusters(index, kernel_of(asked).scan, 1 << k, threads, device.smem_bytes);
  }
  return known[index] = device;
}

size_t scratch_bytes(const Call& call, const Plan& plan) {
  if (plan.regime == Regime::step) return step_scratch_bytes(call);
  check_plan(call, plan);
  const Scratch scratch(call, plan);
  return static_cast<size_t>(scratch.weights + scratch.cuts);
}

void run(const Call& call, const Plan& plan, void* scratch_memory, void* stream) {
  if (plan.regime == Regime::step) return run_step(call, scratch_memory, stream);
  check_plan(call, plan);
  const Problem& n = call.problem;
  const Instance& i = kInstances[plan.instance];
  const Kernel kernel = kernel_of(plan.instance);
  const Scratch scratch(call, plan);
  char* const packed = static_cast<char*>(scratch_memory);
  uint8_t* const cuts = call.rows.reset ? reinterpret_cast<uint8_t*>(packed + scratch.weights) : nullptr;

  launch_kernel(kernel.pack, {packed_blocks(i) * static_cast<int>(n.S), kPackThreads}, stream,
                static_cast<const char*>(call.w), packed, static_cast<int>(n.H));
  if (cuts) {
    const Rows& r = call.rows;
    const CutsParams p{r.reset,
                       r.reset_t,
                       r.reset_b,
                       r.reset_s,
                       r.lengths,
                       r.length_s,
                       r.length_b,
                       cuts,
                       static_cast<int>(n.T),
                       static_cast<int>(n.B),
                       static_cast<int>(n.S),
                       n.directions,
                       scratch.tiles};
    launch_kernel(pack_cuts_kernel(), {blocks(scratch.cuts), kPackThreads}, stream, p);
  }

  Params p = params_of(call, plan, packed, cuts);
  Launch launch{0, i.threads(), i.cluster, smem_bytes(i), regime_of(i.exchange) == Regime::grid};
  const int teams = static_cast<int>(n.S) * plan.groups;
  int wave = plan.wave > 0 ? std::min(plan.wave, teams) : teams;
  if (launch.resident) {
    fill_outputs(call, stream);
    wave = std::min(wave, resident_ctas(plan.instance, kernel.scan, launch) / i.team());
    if (wave < 1)
      throw std::runtime_error("fusedrnn: a team of " + std::to_string(i.team()) + " CTAs is not resident at once");
  }
  for (p.first_team = 0; p.first_team < teams; p.first_team += wave) {
    launch.ctas = std::min(wave, teams - p.first_team) * i.team();
    launch_kernel(kernel.scan, launch, stream, p);
  }
}
}  // namespace fusedrnn::cuda
