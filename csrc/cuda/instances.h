// The kernels that the library is compiled with, as data. Provisional: shapes of the prototype that compiled without
// spills, for bf16 and fp16; half of each for tf32.
#pragma once
#if defined(FUSEDRNN_HOST_DEVICE)
#include "host_device/instances.h"
#else
#include <array>
#include <cstddef>

#include "cuda/instance.h"

namespace fusedrnn::cuda {
namespace provisional {
struct Shape {
  int cell;   // -1: every cell
  bool wide;  // tf32
  Pass pass;
  Exchange exchange;
  int H, units, rows, chains, k_split, k_registers, cluster;
};
constexpr Pass F = Pass::forward, B = Pass::backward;
constexpr Shape kShapes[] = {
    {-1, false, F, Exchange::cta, 64, 64, 8, 1, 2, 99, 1},
    {-1, false, B, Exchange::cta, 64, 64, 8, 1, 2, 99, 1},
    {-1, false, F, Exchange::cta, 128, 128, 8, 1, 1, 99, 1},
    {-1, false, F, Exchange::cta, 128, 128, 8, 2, 1, 99, 1},
    {-1, false, B, Exchange::cta, 128, 128, 8, 1, 1, 99, 1},
    {kGru, false, F, Exchange::cta, 192, 192, 8, 1, 1, 6, 1},
    {kGru, false, B, Exchange::cta, 192, 192, 8, 1, 1, 18, 1},
    {kRnnTanh, false, F, Exchange::cta, 256, 256, 8, 1, 1, 99, 1},
    {kRnnRelu, false, F, Exchange::cta, 256, 256, 8, 1, 1, 99, 1},
    {-1, false, F, Exchange::cluster, 256, 64, 8, 1, 2, 99, 4},
    {-1, false, F, Exchange::cluster, 256, 64, 8, 2, 2, 99, 4},
    {-1, false, B, Exchange::scatter, 256, 64, 8, 1, 2, 99, 4},
    {-1, false, F, Exchange::cluster, 512, 32, 8, 1, 4, 99, 16},
    {-1, false, F, Exchange::cluster, 512, 32, 8, 2, 4, 99, 16},
    {-1, false, F, Exchange::cluster, 512, 64, 8, 1, 2, 15, 8},
    {-1, false, B, Exchange::scatter, 512, 32, 8, 1, 4, 99, 16},
    {-1, false, B, Exchange::scatter, 512, 32, 8, 2, 4, 99, 16},
    {-1, false, B, Exchange::scatter, 512, 64, 8, 1, 2, 40, 8},
    {kGru, false, F, Exchange::cluster, 768, 48, 8, 1, 2, 13, 16},
    {kLstm, false, F, Exchange::cluster, 768, 48, 8, 1, 2, 9, 16},
    {-1, false, F, Exchange::grid, 1024, 16, 8, 1, 8, 99, 1},
    {-1, false, F, Exchange::grid, 1024, 16, 8, 4, 8, 99, 1},
    {-1, false, B, Exchange::grid, 1024, 16, 8, 1, 8, 99, 1},
    {-1, false, B, Exchange::grid, 1024, 16, 8, 4, 8, 99, 1},
    {-1, false, F, Exchange::split, 1024, 16, 8, 4, 8, 99, 2},
    {-1, false, B, Exchange::split, 1024, 16, 8, 4, 8, 99, 8},
    {-1, false, F, Exchange::grid, 2048, 16, 8, 1, 8, 10, 1},
    {-1, false, B, Exchange::grid, 2048, 16, 8, 1, 8, 28, 1},
    {-1, false, B, Exchange::split, 2048, 16, 8, 4, 8, 28, 4},
    {-1, true, F, Exchange::cta, 64, 64, 8, 1, 2, 99, 1},
    {-1, true, B, Exchange::cta, 64, 64, 8, 1, 2, 99, 1},
    {-1, true, F, Exchange::cluster, 256, 32, 8, 1, 4, 99, 8},
    {-1, true, B, Exchange::scatter, 256, 32, 8, 1, 4, 99, 8},
    {-1, true, F, Exchange::cluster, 512, 32, 8, 1, 4, 14, 16},
    {-1, true, B, Exchange::scatter, 512, 32, 8, 1, 4, 40, 16},
    {-1, true, F, Exchange::grid, 512, 16, 8, 1, 8, 99, 1},
    {-1, true, F, Exchange::grid, 512, 16, 8, 4, 8, 99, 1},
    {-1, true, B, Exchange::grid, 512, 16, 8, 4, 8, 99, 1},
};

// Every shape for its cells and precisions, without and (where it can) with masks.
template <class Take>
constexpr void each(Take take) {
  for (const Shape& s : kShapes)
    for (int cell = 0; cell < 4; cell++)
      for (Precision precision : {Precision::bf16, Precision::fp16, Precision::tf32})
        for (bool masked : {false, true}) {
          if ((s.cell >= 0 && s.cell != cell) || s.wide != (precision == Precision::tf32)) continue;
          if (masked && s.exchange == Exchange::split) continue;
          take(Instance{cell, precision, s.pass, s.exchange, masked, s.H, s.units, s.rows, s.chains, s.k_split,
                        s.k_registers, s.cluster});
        }
}
constexpr size_t count() {
  size_t n = 0;
  each([&](const Instance&) { n++; });
  return n;
}
constexpr auto table() {
  std::array<Instance, count()> all{};
  size_t n = 0;
  each([&](const Instance& i) { all[n++] = i; });
  return all;
}
}  // namespace provisional
inline constexpr auto kInstances = provisional::table();
}  // namespace fusedrnn::cuda
#endif
