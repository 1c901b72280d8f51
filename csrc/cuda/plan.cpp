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

int64_t max_clusters(const Device& device, int size) { return device.max_clusters[std::bit_width(unsigned(size)) - 1]; }

// Teams of an instance that the device runs at once, at one CTA an SM.
int64_t resident_teams(const Instance& i, const Device& device) {
  if (i.cluster > 1) return max_clusters(device, i.cluster) * i.cluster / i.team();
  return device.sms / i.team();
}

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

// What a kernel has to pass to take a request, in the order of the checks.
enum class Check : int { kind, size, masks, device, smem, clusters, team, passed };

Check first_failed(const Request& r, const Instance& i, const Device& device) {
  if (i.cell != r.problem.cell || i.precision != r.precision || i.pass != r.pass) return Check::kind;
  if (r.problem.H > i.H) return Check::size;
  // The split grid waits for every row at every step.
  if ((r.masked || r.problem.H != i.H) && (!i.masked || i.exchange == Exchange::split)) return Check::masks;
  if (i.cluster > 1 && device.major < 9) return Check::device;
  if (regime_of(i.exchange) == Regime::grid && !device.cooperative) return Check::device;
  if (smem_bytes(i) > device.smem_bytes) return Check::smem;
  if (i.cluster > 1 && max_clusters(device, i.cluster) < 1) return Check::clusters;
  return resident_teams(i, device) < 1 ? Check::team : Check::passed;
}

std::string reason(Check failed, const Request& r, const Instance& i, const Device& device) {
  const Regime regime = regime_of(i.exchange);
  const std::string H = text(r.problem.H), least = text(i.H);
  switch (failed) {
    case Check::kind:
      return std::string("there is no kernel for ") + kCellNames[r.problem.cell] + ", " +
             kPrecisionNames[int(r.precision)] + ", " + kPassNames[int(r.pass)];
    case Check::size: {
      const char* place = regime == Regime::cta       ? "one SM"
                          : regime == Regime::cluster ? "a cluster"
                                                      : "the SMs together";
      return "W_hh of H = " + H + " does not fit " + place + ", expected H <= " + least;
    }
    case Check::masks:
      return "the kernel of H = " + least + " takes no lengths, resets, packed rows or smaller H, got " +
             (r.masked ? "some of them" : "H = " + H);
    case Check::device:
      return device_lacks(i.cluster > 1 && device.major < 9 ? Regime::cluster : regime, device);
    case Check::smem:
      return text(smem_bytes(i)) + " bytes of shared memory needed, " + text(device.smem_bytes) + " are there";
    case Check::clusters:
      return "clusters of " + text(i.cluster) + " CTAs needed, the device runs none of that size";
    default:
      return text(i.team()) + " CTAs needed, " +
             (i.cluster > 1 ? text(max_clusters(device, i.cluster) * i.cluster) + " in clusters of " + text(i.cluster)
                            : text(device.sms) + " SMs") +
             " are there";
  }
}

// Of many refusals the one is told that came furthest, and of those the one that asks for least.
struct Refusal {
  Check failed;
  const Instance* instance = nullptr;

  int64_t asks_for() const {
    switch (failed) {
      case Check::size:
        return -instance->H;
      case Check::masks:
        return instance->H;
      case Check::smem:
        return smem_bytes(*instance);
      default:
        return instance->team();
    }
  }
  bool closer_than(const Refusal& other) const {
    if (!other.instance || failed != other.failed) return !other.instance || failed > other.failed;
    return asks_for() < other.asks_for();
  }
};

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
  if (request.precision == Precision::fp64 || request.derivatives || request.noise || request.norm ||
      request.goes_back) {
    if (!any)
      refuse(request.norm          ? "layer normalisation is the time-step kernel's, expected none"
             : request.noise       ? "zoneout and recurrent dropout are the time-step kernel's, expected neither"
             : request.goes_back   ? "reset_state is the time-step kernel's, expected none"
             : request.derivatives ? "gradients of the kept values or of c at every step come in, expected none"
                                   : "got fp64, expected bf16, fp16, tf32 or fp32");
    return best;
  }
  if (!any) {
    best.us_per_step = std::numeric_limits<double>::infinity();
    if (const std::string lacks = device_lacks(wish, device); !lacks.empty()) refuse(lacks);
  }
  Refusal closest{Check::kind};
  for (size_t n = 0; n < count; n++) {
    const Instance& i = instances[n];
    if (!any && regime_of(i.exchange) != wish) continue;
    const Refusal refused{first_failed(request, i, device), &i};
    if (refused.failed != Check::passed) {
      if (!any && refused.closer_than(closest)) closest = refused;
      continue;
    }
    const Plan candidate = planned(request, i, int(n), device);
    if (candidate.us_per_step < best.us_per_step) best = candidate;
  }
  if (best.regime == Regime::step && !any)
    refuse(closest.instance ? reason(closest.failed, request, *closest.instance, device)
                            : "this build has no kernel of that regime");
  return best;
}
}  // namespace fusedrnn::cuda
