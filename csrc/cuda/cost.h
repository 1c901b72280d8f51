// What the planner believes a call costs: cycles of one step of a team's CTA, and what all SMs ask of L2 and memory
// meanwhile. A model: it ranks kernels, it does not replace a measurement. No CUDA.
//
// Every constant is an assumption until it is measured on a GPU. Cycles are the SM's. Source of those without another:
// counted in the compiled kernels (instructions of a loop), or an estimate for Hopper.
#pragma once
#include <algorithm>

#include "cuda/footprint.h"
#include "cuda/plan.h"

namespace fusedrnn::cuda::cost {
constexpr double kLaunchUs = 2.2;  // from one kernel's end to the next one's start; with its first loads. Estimate

// m16n8k16 (tf32: m16n8k8) of one of an SM's four sub-partitions. A100: 312 TFLOP/s dense are 8 cycles. Hopper and data
// center Blackwell reach about the same through mma.sync (63 % of Hopper's peak are 6.4: arXiv 2402.13499). Ada and
// workstation Blackwell: L4, 121 TFLOP/s dense, 16 cycles; GeForce cards need twice that, which this leaves out.
constexpr double tensor_cycles(const Device& device) {
  return device.major == 9 || device.major == 10 || (device.major == 8 && device.minor == 0) ? 8 : 16;
}
constexpr double kTensorLatency = 33;  // of dependent ones: arXiv 2402.13499
constexpr double kAccumulators = 2;    // independent sums that a warp alternates between

constexpr double kSharedLatency = 33, kSharedBytesPerCycle = 128;
constexpr double kCtaBarrierCycles = 30, kWakeUpCycles = 30, kTransposeCycles = 20;
constexpr double kPartialSumsCycles = 60, kPartialSumCycles = 4;  // k split over warps: fixed, and a warp and sum

// st.async until the waiting warp has seen the mbarrier; received bytes an SM. DSM latency 180 cycles, ring copy 11 to
// 14 bytes a cycle: arXiv 2402.13499.
constexpr double kClusterLatency = 230, kClusterPeerCycles = 2, kClusterBytesPerCycle = 16;
// Store, visible in L2, polled by another SM (L2 hit 263 cycles: arXiv 2402.13499); bytes an SM with all SMs reading.
constexpr double kGridLatency = 750, kGridBytesPerCycle = 22;

// Of a unit's pointwise half, by CellKind: its latency, and instructions a warp. The accurate tanh and sigmoid of fp32
// and tf32 add to both.
constexpr double kCellCycles[] = {150, 180, 80, 60}, kCellInstructions[] = {135, 175, 75, 65};
constexpr double kAccurateCycles = 60;
constexpr double kWarpInstructions = 60;  // of a step, beside product and cell
constexpr double kSplitInstructions = 9;  // fp32: to split one tile of weights into high and low parts
constexpr double kWritesOfWeights = 2;    // packed once a call: read and written

constexpr bool fp32(const Instance& i) { return i.precision == Precision::fp32; }

// One step of one CTA, all its chains of rows.
inline double step_cycles(const Instance& i, const Device& device) {
  const Footprint f = footprint(i);
  const double bytes = element_bytes(i.precision), tiles = i.rows / 8., warps = i.warps(), cluster = i.cluster;
  const double warps_in_turn = std::max(1., warps / 4);  // on a sub-partition
  const bool scatter = i.exchange == Exchange::scatter, split = i.exchange == Exchange::split;
  const bool sums_in_warps = i.k_split > 1 && !scatter;
  const double vector_bytes = f.k * i.rows * bytes;  // of the exchanged vector, one chain

  // The product. fp32 takes three products of tf32.
  const double products = f.weight_tiles() * tiles * (fp32(i) ? 3 : 1);
  const double tensor = products / warps * warps_in_turn * tensor_cycles(device);
  const double in_turn = scatter ? f.k_tiles * std::max(1., f.m_tiles / 4.) : f.k_tiles / kAccumulators;
  const double dependent = in_turn * (fp32(i) ? 3 : 1) * kTensorLatency;
  const double vector_reads = warps * f.k / (scatter ? 1 : i.k_split) * i.rows * bytes;
  const double shared = (f.weights_smem() + vector_reads) / kSharedBytesPerCycle;

  // What passes between CTAs.
  double exchange = kCtaBarrierCycles + kSharedLatency, received = 0, bytes_per_cycle = 1;
  if (regime_of(i.exchange) == Regime::cluster) {
    exchange = kClusterLatency + kClusterPeerCycles * cluster;
    received = (scatter ? i.H * i.rows * 4. : vector_bytes) * (cluster - 1) / cluster;
    bytes_per_cycle = kClusterBytesPerCycle;
  } else if (regime_of(i.exchange) == Regime::grid) {
    exchange = kGridLatency;
    received = i.units / 16. * vector_bytes / (split ? cluster : 1);  // every 16 units read the vector for themselves
    bytes_per_cycle = kGridBytesPerCycle;
  }
  double arrival = received / bytes_per_cycle, partial_sums = 0;
  if (sums_in_warps)
    partial_sums = kPartialSumsCycles + kCtaBarrierCycles + kPartialSumCycles * (i.k_split - 1) * f.m_sums * tiles;
  if (scatter) partial_sums = kCtaBarrierCycles + kSharedLatency + kPartialSumCycles * cluster * tiles;
  if (split) {
    const double sums = (cluster - 1) * f.m_sums * i.units * i.rows * 4 / kClusterBytesPerCycle;
    exchange += kClusterLatency + 2 * kClusterPeerCycles * cluster + sums;
    arrival = std::max(arrival, sums);
  }

  const double accurate = bytes > 2 ? kAccurateCycles : 0, finishers = std::min(2, i.k_split) * i.units / 16. * tiles;
  const double stores =  // st.async, of a finishing warp
      i.exchange == Exchange::cluster ? 2 * cluster * (i.pass == Pass::backward ? kGatesOf[i.cell] : 1) : 0;
  const double instructions = products + (scatter ? warps * f.m_tiles * tiles : 0) +
                              (fp32(i) ? kSplitInstructions * f.weight_tiles() : 0) +
                              finishers * (kCellInstructions[i.cell] + accurate + stores) + warps * kWarpInstructions;
  const double latency = std::max({tensor, dependent, shared}) + kWakeUpCycles + kSharedLatency + kTransposeCycles +
                         partial_sums + kCellCycles[i.cell] + accurate + exchange + received / bytes_per_cycle;
  const double throughput = std::max({tensor, instructions / 4, shared, arrival});
  return std::max(latency, i.chains * throughput);
}

inline double us(double cycles, const Device& device) { return cycles / (device.clock_ghz * 1e3); }
inline double memory_us(double bytes, const Device& device) { return bytes / (device.memory_gbs * 1e3); }

inline double weight_bytes(const Request& r) {
  return double(r.problem.S) * kGatesOf[r.problem.cell] * r.problem.H * r.problem.H * element_bytes(r.precision);
}
// What a step reads and writes of the call's tensors: gates or their gradients, kept values, states, output.
inline double tensor_bytes(const Request& r) {
  const int values = kGatesOf[r.problem.cell] + kKeptOf[r.problem.cell] + 2 + (has_c(r.problem.cell) ? 1 : 0);
  return double(r.problem.S) * r.problem.B * values * r.problem.H * element_bytes(r.precision);
}

// A whole call of a persistent kernel: `teams` of them, `resident` at once.
inline double call_us(const Request& r, const Instance& i, const Device& device, int64_t teams, int64_t resident) {
  const Problem& p = r.problem;
  const int64_t waves = (teams + resident - 1) / resident;
  const bool grid = regime_of(i.exchange) == Regime::grid;
  double step = std::max(double(waves) * us(step_cycles(i, device), device), memory_us(tensor_bytes(r), device));
  if (grid) {  // the output is the message, and is filled with the sentinel before
    const int values = r.pass == Pass::forward ? 1 : kGatesOf[p.cell] + (p.cell == kGru);
    step += memory_us(double(p.S) * p.B * values * p.H * element_bytes(r.precision), device);
  }
  const double launches = grid ? 2 + double(waves) : 2;  // packing, filling, scan
  return launches * kLaunchUs + memory_us(kWritesOfWeights * weight_bytes(r), device) + double(p.T) * step;
}

// The time-step kernel: a launch a step, weights from L2 each time.
constexpr double kStepTensorShare = 0.25, kStepPlainShare = 0.3;  // of the peak rate. Estimates
constexpr double kShareOfL2 = 0.8;    // that weights may fill and still be there at the next step
constexpr double kStepCycles = 1500;  // where the rows lie, sums of the warps, the cell's own loads: one after another
constexpr double kStepLoadCycles = 300;  // a warp's block of k until the next one has come from L2
// With layer normalisation a step is two launches: the second one's passes over a row. Estimate
constexpr double kRowCycles = 2000;
constexpr int kStepRows = 32, kStepLeastRows = 8, kStepWarps = 8, kStepCtas = 128;  // as in step.cu

// Multiply-adds a cycle and SM without tensor cores. fp64: 64 on data center GPUs, 2 elsewhere (CUDA C++ Programming
// Guide, throughput of native arithmetic instructions).
constexpr double plain_rate(const Request& r, const Device& device) {
  const bool data_center = device.major >= 9 ? device.major <= 10 : device.minor == 0;
  return r.precision == Precision::fp64 ? (data_center ? 64 : 2) : 128;
}

inline double step_call_us(const Request& r, const Device& device) {
  const Problem& p = r.problem;
  const bool forward = r.pass == Pass::forward,
             plain = r.precision == Precision::fp32 || r.precision == Precision::fp64;
  const int64_t gates = kGatesOf[p.cell], units = forward ? 16 : 32, unit_tiles = (p.H + units - 1) / units * p.S;
  const int64_t eights = (p.B + kStepLeastRows - 1) / kStepLeastRows, most = (p.B + kStepRows - 1) / kStepRows;
  const int64_t row_tiles = std::max(most, std::min(eights, (kStepCtas + unit_tiles - 1) / unit_tiles));
  const double bytes = element_bytes(r.precision), k = double(forward ? 1 : gates) * p.H;

  const double multiplies = double(p.S) * eights * kStepLeastRows * gates * p.H * p.H;
  const double tensor_rate = 4 * 2048 / tensor_cycles(device) * (bytes > 2 ? 0.5 : 1);
  const double rate = plain ? kStepPlainShare * plain_rate(r, device) : kStepTensorShare * tensor_rate;
  const double busy_sms = double(std::min<int64_t>(device.sms, unit_tiles * eights));
  const double product = multiplies / (busy_sms * rate);
  const double loads = k * bytes / 64 / (plain ? 1 : kStepWarps) * kStepLoadCycles;
  const double l2 =
      (row_tiles * weight_bytes(r) + unit_tiles * double(p.B) * k * bytes) / (kGridBytesPerCycle * device.sms);
  const bool in_l2 = weight_bytes(r) <= kShareOfL2 * device.l2_bytes;
  const double memory = memory_us(tensor_bytes(r) + (in_l2 ? 0 : weight_bytes(r)), device);
  const double rows = r.norm ? kLaunchUs + us(kRowCycles, device) : 0;
  return double(p.T) * (kLaunchUs + std::max(us(kStepCycles + std::max({product, loads, l2}), device), memory) + rows);
}
}  // namespace fusedrnn::cuda::cost
