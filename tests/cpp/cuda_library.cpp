// The CUDA backend on the stand-in, as a library that Python calls by ctypes (tests/cuda_check.py): pointers are the
// host's, every launch is over when it returns.
#include <math.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/run.h"
#include "host_device/machine.h"

namespace {
using namespace fusedrnn;
using namespace fusedrnn::cuda;
std::string error;
}  // namespace

extern "C" {
const char* cuda_last_error() { return error.c_str(); }

// Global memory that the kernels may touch from now on; without an address, none but the scratch.
void cuda_memory(const char* first, int64_t bytes) {
  if (first)
    stand_in::memory()[first] = size_t(bytes);
  else
    stand_in::memory().clear();
}

// `values`: the fields of a Call in their order, pointers as numbers. Returns 1, and leaves a message, if it fails.
int cuda_step(const int64_t* values, unsigned seed) {
  error.clear();
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
  in(call.offsets), in(call.w), in(call.bias), in(call.h0), in(call.c0);
  in(call.gates_x), in(call.y), in(call.cs), in(call.gates), in(call.hn), in(call.cn);
  in(call.dy), in(call.dgates), in(call.dcs), in(call.dhn), in(call.dcn);
  in(call.dgates_x), in(call.dq), in(call.dh0), in(call.dc0);
  stand_in::seed() = seed;
  std::vector<double> scratch(step_scratch_bytes(call) / sizeof(double) + 1, double(NAN));
  const char* const first = reinterpret_cast<const char*>(scratch.data());
  stand_in::memory()[first] = step_scratch_bytes(call);
  try {
    run_step(call, scratch.data(), nullptr);
  } catch (const std::runtime_error& fault) {
    error = fault.what();
  }
  stand_in::memory().erase(first);
  return !error.empty();
}
}
