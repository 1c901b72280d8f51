// The kernels that the library is compiled with, as data: shapes, for every cell and precision that they fit.
//
// Rows of a chain are always 8: fewer batch rows cannot be multiplied, and more of them are better spread over teams or
// chains. cta takes H that one SM holds, cluster and scatter what 4, 8 or 16 SMs hold, grid the rest, and for GPUs
// without clusters or with little shared memory also smaller H; split is the grid for many rows of large H. Kernels of
// one CTA come without masks too; elsewhere masks cost about a dozen registers and no time that the exchange does not
// hide.
#pragma once
#if defined(FUSEDRNN_HOST_DEVICE)
#include "host_device/instances.h"
#else
#include <array>
#include <cstddef>

#include "cuda/footprint.h"

namespace fusedrnn::cuda {
namespace table {
struct Shape {
  int bytes;  // of an element
  bool forward, backward;
  Exchange exchange;
  int H, units, k_split, cluster;
  int chains[3];  // one row of the table each, 0: none
};
constexpr Exchange kCta = Exchange::cta, kCluster = Exchange::cluster, kScatter = Exchange::scatter,
                   kGrid = Exchange::grid, kSplit = Exchange::split;
constexpr Shape kShapes[] = {
    {2, true, true, kCta, 32, 32, 1, 1, {1, 0}},         {2, true, true, kCta, 64, 64, 2, 1, {1, 0}},
    {2, true, true, kCta, 128, 128, 1, 1, {1, 0}},       {2, true, true, kCta, 192, 192, 1, 1, {1, 0}},
    {2, true, true, kCta, 256, 256, 1, 1, {1, 0}},       {2, true, true, kCta, 384, 384, 1, 1, {1, 0}},
    {2, true, false, kCluster, 256, 64, 2, 4, {1, 2}},   {2, true, false, kCluster, 384, 48, 4, 8, {1, 2}},
    {2, true, false, kCluster, 512, 64, 2, 8, {1, 2}},   {2, true, false, kCluster, 512, 32, 4, 16, {1, 2}},
    {2, true, false, kCluster, 768, 48, 2, 16, {1, 0}},  {2, false, true, kScatter, 256, 64, 2, 4, {1, 2}},
    {2, false, true, kScatter, 384, 96, 2, 4, {1, 0}},   {2, false, true, kCluster, 384, 48, 4, 8, {1, 2}},
    {2, false, true, kScatter, 512, 64, 2, 8, {1, 2}},   {2, false, true, kScatter, 512, 32, 4, 16, {1, 2}},
    {2, false, true, kScatter, 768, 48, 2, 16, {1, 0}},  {2, false, true, kCluster, 768, 48, 4, 16, {1, 0}},
    {2, true, true, kGrid, 192, 16, 2, 1, {1, 4}},       {2, true, true, kGrid, 256, 16, 8, 1, {1, 4}},
    {2, true, true, kGrid, 384, 16, 4, 1, {1, 4}},       {2, true, true, kGrid, 512, 16, 8, 1, {1, 4}},
    {2, true, true, kGrid, 768, 16, 8, 1, {1, 4}},       {2, true, true, kGrid, 1024, 16, 8, 1, {1, 2, 4}},
    {2, true, true, kGrid, 1536, 16, 8, 1, {1, 2}},      {2, true, true, kGrid, 2048, 16, 8, 1, {1, 2}},
    {2, true, false, kSplit, 1024, 16, 8, 2, {1, 2, 4}}, {2, true, false, kSplit, 1536, 16, 8, 2, {2, 0}},
    {2, true, false, kSplit, 2048, 16, 8, 2, {2, 0}},    {2, false, true, kSplit, 1024, 16, 8, 8, {1, 4}},
    {2, false, true, kSplit, 1024, 16, 8, 4, {1, 2, 4}}, {2, false, true, kSplit, 1536, 16, 8, 8, {1, 4}},
    {2, false, true, kSplit, 2048, 16, 8, 4, {1, 4}},    {4, true, true, kCta, 32, 32, 1, 1, {1, 0}},
    {4, true, true, kCta, 64, 64, 2, 1, {1, 0}},         {4, true, true, kCta, 128, 128, 1, 1, {1, 0}},
    {4, true, false, kCluster, 256, 32, 4, 8, {1, 2}},   {4, true, false, kCluster, 512, 32, 4, 16, {1, 2}},
    {4, false, true, kScatter, 256, 32, 4, 8, {1, 2}},   {4, false, true, kScatter, 512, 32, 4, 16, {1, 2}},
    {4, true, true, kGrid, 128, 16, 4, 1, {1, 2}},       {4, true, true, kGrid, 256, 16, 8, 1, {1, 2}},
    {4, true, true, kGrid, 512, 16, 8, 1, {1, 2}},       {4, true, true, kGrid, 768, 16, 8, 1, {1, 2}},
    {4, true, true, kGrid, 1024, 16, 8, 1, {1, 0}},
};

constexpr int least(int a, int b) { return a < b ? a : b; }

// Registers of a thread that do not hold weights: measured, as the most with which no instance spills (see
// tools/kernels_check.py).
constexpr int other_registers(const Instance& i) {
  const bool forward = i.pass == Pass::forward, wide = element_bytes(i.precision) == 4;
  const int gates = kGatesOf[i.cell];
  const int once = forward ? 30 + 16 * gates : 48 + 12 * gates, chain = forward ? 16 + 8 * gates : 20 + 8 * gates;
  const bool grid = regime_of(i.exchange) == Regime::grid;
  const bool in_turns = grid && footprint(i).k_tiles / 2 > grid_chunk(i);
  const int in_flight = grid                              ? 4 * grid_chunk(i) + 32 * in_turns
                        : i.exchange == Exchange::scatter ? 2 * footprint(i).k_tiles
                                                          : 0;
  const int of_cluster = i.exchange == Exchange::cluster ? 6 + 3 * i.cluster / 4 : 0;
  const int of_masks = i.masked ? 8 + 4 * (i.chains - 1) + (!forward && i.threads() > 256 ? 20 : 0) : 0;
  const int of_elements = (wide ? (14 + 2 * gates) * i.chains : 0) + (i.precision == Precision::fp32 ? 12 : 0);
  return once + chain * (i.chains - 1) + in_flight + of_cluster + of_masks + of_elements;
}
// Tiles of weights in registers: what the other registers leave of a thread's.
constexpr int k_registers(Instance i) {
  i.k_registers = 1 << 20;
  const int of_thread = least(255, 65536 / i.threads() / 8 * 8), room = (of_thread - other_registers(i)) / 4;
  const Footprint f = footprint(i);
  return room <= 0 ? 0 : least(room, f.registers) / f.m_sums;
}

constexpr int kMostSmemBytes = 232448;  // of sm_90
constexpr bool fits(const Instance& i) {
  const int gates = kGatesOf[i.cell], block = 64 / element_bytes(i.precision);
  const bool scatter = i.exchange == Exchange::scatter;
  const int k = (i.pass == Pass::forward ? 1 : gates) * (scatter ? i.units : i.H);
  if (k % (block * (scatter ? 1 : i.k_split)) || (scatter && i.H / 16 % i.warps())) return false;
  return smem_bytes(i) <= kMostSmemBytes;
}

template <class Take>
constexpr void each(Take take) {
  for (const Shape& s : kShapes)
    for (int cell = 0; cell < 4; cell++)
      for (const Precision precision : {Precision::bf16, Precision::fp16, Precision::tf32, Precision::fp32})
        for (const Pass pass : {Pass::forward, Pass::backward})
          for (const int chains : s.chains)
            for (const bool masked : {false, true}) {
              if (element_bytes(precision) != s.bytes || !chains || !(pass == Pass::forward ? s.forward : s.backward))
                continue;
              if (masked ? s.exchange == kSplit : s.exchange != kSplit && s.exchange != kCta) continue;
              Instance i{cell, precision, pass, s.exchange, masked, s.H, s.units, 8, chains, s.k_split, 0, s.cluster};
              if (i.exchange == kScatter && i.H / 16 % i.warps()) continue;
              i.k_registers = k_registers(i);
              if (fits(i)) take(i);
            }
}
constexpr size_t count() {
  size_t n = 0;
  each([&](const Instance&) { n++; });
  return n;
}
constexpr auto all() {
  std::array<Instance, count()> rows{};
  size_t n = 0;
  each([&](const Instance& i) { rows[n++] = i; });
  return rows;
}
}  // namespace table
inline constexpr auto kInstances = table::all();
}  // namespace fusedrnn::cuda
#endif
