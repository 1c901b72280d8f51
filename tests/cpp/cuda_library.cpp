// The CUDA backend on the stand-in, as a library that Python calls by ctypes (tests/cuda_calls.py): pointers are the
// host's, every launch is over when it returns.
#include <math.h>
#include <string.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/footprint.h"
#include "cuda/run.h"
#include "host_device/machine.h"

namespace {
using namespace fusedrnn;
using namespace fusedrnn::cuda;
std::string error;

double number(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

struct NormedCall {
  Call call;
  NormTensors norms;
};
NormedCall call_of(const int64_t* values) {
  Call call{};
  auto next = [&] { return *values++; };
  auto in = [&](auto*& to) { to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(next()); };
  call.pass = Pass(next());
  call.precision = Precision(next());
  Problem& n = call.problem;
  n.cell = int(next()), n.directions = int(next()), n.T = next(), n.B = next(), n.S = next(), n.H = next();
  Rows& rows = call.rows;
  in(rows.lengths), rows.length_s = next(), rows.length_b = next();
  in(rows.reset), rows.reset_t = next(), rows.reset_b = next(), rows.reset_s = next();
  in(call.offsets);
  Noise& noise = call.noise;
  noise.zoneout_h = number(next()), noise.zoneout_c = number(next()), noise.dropout = number(next());
  in(call.key), noise.drawn = call.key;
  in(call.w), in(call.bias), in(call.h0), in(call.c0), in(call.reset_h), in(call.reset_c);
  in(call.gates_x), in(call.y), in(call.cs), in(call.gates), in(call.hn), in(call.cn);
  in(call.dy), in(call.dgates), in(call.dcs), in(call.dhn), in(call.dcn);
  in(call.dgates_x), in(call.dq), in(call.dh0), in(call.dc0), in(call.dreset_h), in(call.dreset_c);
  NormTensors norms{};
  in(norms.gain), in(norms.gain_c), in(norms.shift_c), in(norms.products), in(norms.dproducts);
  return {call, norms};
}
}  // namespace

extern "C" {
const char* cuda_last_error() { return error.c_str(); }

// Global memory that the kernels may touch from now on; without an address, none but the scratch.
void cuda_memory(const char* first, int64_t bytes) {
  if (first)
    host_device::memory()[first] = size_t(bytes);
  else
    host_device::memory().clear();
}

// A row of the table of instances as numbers, in the order of its fields. Returns 0 behind the last row.
int cuda_instance(int row, int* to) {
  size_t count = 0;
  const Instance* const table = instances(&count);
  if (row < 0 || size_t(row) >= count) return 0;
  const Instance& i = table[row];
  for (const int field : {i.cell, int(i.precision), int(i.pass), int(i.exchange), int(i.masked), i.H, i.units, i.rows,
                          i.chains, i.k_split, i.k_registers, i.cluster})
    *to++ = field;
  return 1;
}

// `values`: the fields of a Call and of NormTensors in their order, pointers as numbers. `row`: of the table of instances; -1:
// the time-step kernel; -2: that with layer normalisation. Returns 1, and leaves a message, if it fails.
int cuda_run(const int64_t* values, int row, unsigned seed) {
  error.clear();
  const auto [call, norms] = call_of(values);
  Plan plan{Regime::step, -1, 0, 0, 0, 0, 0, 0, 0};
  if (row >= 0) {
    size_t count = 0;
    const Instance& i = instances(&count)[row];
    const int groups = int((call.problem.B + i.group_rows() - 1) / i.group_rows());
    plan = {regime_of(i.exchange), row, groups, i.team(), i.cluster, i.threads(), smem_bytes(i), 0, 0};
  }
  host_device::seed() = seed;
  try {
    const size_t bytes = row == -2 ? norm_step_scratch_bytes(call) : scratch_bytes(call, plan);
    std::vector<double> scratch(bytes / sizeof(double) + 64, double(NAN));
    char* first = reinterpret_cast<char*>(scratch.data());
    first += 256 - reinterpret_cast<uintptr_t>(first) % 256;  // as the allocator of a GPU aligns
    host_device::memory()[first] = bytes;
    if (row == -2)
      run_norm_step(call, norms, first, nullptr);
    else
      run(call, plan, first, nullptr);
    host_device::memory().erase(first);
  } catch (const std::exception& fault) {
    error = fault.what();
  }
  return !error.empty();
}
}
