#include "cuda/plan.h"

#include <bit>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/cost.h"
#include "cuda/footprint.h"

namespace fusedrnn::cuda {
namespace {
constexpr const char* kRegimeNames[] = {"automatic", "step", "cta", "cluster", "grid"};
constexpr const char* kPrecisionNames[] = {"bf16", "fp16", "tf32", "fp32", "fp64"};
constexpr const char* kPassNames[] = {"forward", "backward"};
constexpr const char* kCellNames[] = {"gru", "lstm", "rnn_tanh", "rnn_relu"};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
std::string text(int64_t value) { return std::to_string(value); }

// Why a kernel cannot take a request. Of many kernels' reasons the one is told that came furthest through the checks,
// and of those the one that asks for least.
struct Refusal {
  int checks_passed = -1;
  int64_t asks_for = 0;
  std::string reason;

  bool closer_than(const Refusal& other) const {
    return checks_passed != other.checks_passed ? checks_passed > other.checks_passed : asks_for < other.asks_for;
  }
};

int64_t max_clusters(const Device& device, int size) { return device.max_clusters[std::bit_width(unsigned(size)) - 1]; }

// Teams of an instance that the device runs at once, at one CTA an SM.
int64_t resident_teams(const Instance& i, const Device& device) {
  if (i.cluster > 1) return max_clusters(device, i.cluster) * i.cluster / i.team();
  return device.sms / i.team();
}

bool needs_masks(const Request& r, const Instance& i) { return r.masked || r.problem.H != i.H; }

// Why the device has none of a regime, whatever the instance.
std::string device_lacks(Regime regime, const Device& device) {
  const std::string sm = "sm_" + text(device.major) + text(device.minor);
  if (device.major < 8)
    return sm + " is too old: got compute capability " + text(device.major) + "." + text(device.minor) +
           ", expected at least 8.0";
  if (regime == Regime::cluster && device.major < 9)
    return sm + " has no thread block clusters, expected sm_90 or later";
  if (regime == Regime::grid && !device.cooperative)
    return "the device cannot hold a grid resident (no cooperative launch)";
  return "";
}

// Empty reason: it takes the request.
Refusal refusal(const Request& r, const Instance& i, const Device& device) {
  const Regime regime = regime_of(i.exchange);
  const int64_t H = r.problem.H;
  if (i.cell != r.problem.cell || i.precision != r.precision || i.pass != r.pass)
    return {0, 0,
            std::string("there is no kernel for ") + kCellNames[r.problem.cell] + ", " +
                kPrecisionNames[int(r.precision)] + ", " + kPassNames[int(r.pass)]};
  if (H > i.H) {
    const char* place = regime == Regime::cta ? "one SM" : regime == Regime::cluster ? "a cluster" : "the SMs together";
    return {1, -i.H, "W_hh of H = " + text(H) + " does not fit " + place + ", expected H <= " + text(i.H)};
  }
  if (needs_masks(r, i) && (!i.masked || i.exchange == Exchange::split))
    return {2, i.H,
            "the kernel of H = " + text(i.H) + " takes no lengths, resets, packed rows or smaller H, got " +
                (r.masked ? "some of them" : "H = " + text(H))};
  if (i.cluster > 1 && device.major < 9) return {3, i.cluster, device_lacks(Regime::cluster, device)};
  if (regime == Regime::grid && !device.cooperative) return {3, i.team(), device_lacks(regime, device)};
  if (smem_bytes(i) > device.smem_bytes)
    return {4, smem_bytes(i),
            text(smem_bytes(i)) + " bytes of shared memory needed, " + text(device.smem_bytes) + " are there"};
  if (i.cluster > 1 && max_clusters(device, i.cluster) < 1)
    return {5, i.cluster, "clusters of " + text(i.cluster) + " CTAs needed, the device runs none of that size"};
  if (resident_teams(i, device) < 1)
    return {5, i.team(),
            text(i.team()) + " CTAs needed, " +
                (i.cluster > 1 ? text(max_clusters(device, i.cluster) * i.cluster) + " in clusters of " +
                                     text(i.cluster) + " are resident at once"
                               : text(device.sms) + " SMs")};
  return {};
}

Plan planned(const Request& r, const Instance& i, int index, const Device& device) {
  const Problem& p = r.problem;
  const int64_t groups = ceil_div(p.B, i.group_rows()), teams = p.S * groups, resident = resident_teams(i, device);
  const bool grid = regime_of(i.exchange) == Regime::grid;
  const double us = cost::call_us(r, i, device, teams, resident) / double(p.T);
  return {regime_of(i.exchange),
          index,
          int(groups),
          i.team(),
          i.cluster,
          i.threads(),
          smem_bytes(i),
          grid ? int(std::min(teams, resident)) : 0,
          us};
}

Plan step_plan(const Request& r, const Device& device) {
  return {Regime::step, -1, 0, 0, 1, 0, 0, 0, cost::step_call_us(r, device) / double(r.problem.T)};
}
}  // namespace

int smem_bytes(const Instance& instance) { return footprint_smem_bytes(instance); }

Plan plan(const Request& request, const Device& device, const Instance* instances, size_t count) {
  const Regime wish = request.wish;
  const bool any = wish == Regime::automatic;
  const auto refuse = [&](const std::string& reason) {
    throw std::invalid_argument(std::string(kRegimeNames[int(wish)]) + ": " + reason);
  };
  Plan best = step_plan(request, device);
  if (wish == Regime::step || device.major < 8) {
    if (!any && wish != Regime::step) refuse(device_lacks(wish, device));
    return best;
  }
  if (request.precision == Precision::fp64 || request.derivatives) {
    if (!any)
      refuse(request.derivatives ? "gradients of the kept values or of c at every step come in, expected none"
                                 : "got fp64, expected bf16, fp16, tf32 or fp32");
    return best;
  }
  if (!any) {
    best.us_per_step = std::numeric_limits<double>::infinity();
    if (const std::string lacks = device_lacks(wish, device); !lacks.empty()) refuse(lacks);
  }
  Refusal closest;
  for (size_t n = 0; n < count; n++) {
    const Instance& i = instances[n];
    if (!any && regime_of(i.exchange) != wish) continue;
    const Refusal refused = refusal(request, i, device);
    if (!refused.reason.empty()) {
      if (refused.closer_than(closest)) closest = refused;
      continue;
    }
    const Plan candidate = planned(request, i, int(n), device);
    if (candidate.us_per_step < best.us_per_step) best = candidate;
  }
  if (best.regime == Regime::step && !any)
    refuse(closest.reason.empty() ? "this build has no kernel of that regime" : closest.reason);
  return best;
}
}  // namespace fusedrnn::cuda
