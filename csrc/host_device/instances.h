// The table of instances of the tests that run the kernels on a CPU: every exchange, cell, precision and pass, small.
#pragma once
#include <array>
#include <cstddef>

#include "cuda/instance.h"

namespace fusedrnn::cuda {
namespace small {
struct Shape {
  Pass pass;
  Exchange exchange;
  bool masked;
  int H, units, rows, chains, k_split, k_registers, cluster;
  int cell;  // -1: every cell
};
constexpr Pass kForward = Pass::forward, kBackward = Pass::backward;
constexpr Shape kShapes[] = {
    {kForward, Exchange::cta, true, 32, 32, 8, 1, 1, 1, 1, -1},
    {kForward, Exchange::cta, false, 64, 64, 16, 2, 2, 99, 1, kGru},
    {kForward, Exchange::cluster, true, 64, 32, 8, 2, 2, 99, 2, -1},
    {kForward, Exchange::cluster, true, 64, 32, 8, 1, 1, 99, 2, kGru},  // a warp finishes both halves of its units
    {kForward, Exchange::grid, true, 64, 16, 8, 1, 2, 1, 1, -1},
    {kForward, Exchange::grid, false, 128, 32, 8, 2, 4, 99, 1, kLstm},
    {kForward, Exchange::split, false, 64, 16, 8, 2, 2, 99, 2, -1},
    {kBackward, Exchange::cta, true, 32, 32, 8, 1, 1, 2, 1, -1},
    {kBackward, Exchange::cta, false, 64, 64, 16, 2, 2, 99, 1, kGru},
    {kBackward, Exchange::cluster, true, 64, 32, 8, 1, 2, 99, 2, kGru},
    {kBackward, Exchange::scatter, true, 64, 32, 8, 2, 2, 5, 2, -1},
    {kBackward, Exchange::scatter, true, 64, 32, 8, 1, 2, 99, 2, kGru},  // one chain: a warp can be a step late
    {kBackward, Exchange::grid, true, 64, 16, 8, 1, 2, 99, 1, -1},
    {kBackward, Exchange::split, false, 64, 16, 8, 1, 2, 1, 2, -1},
};
template <class Take>
constexpr void each(Take take) {
  for (const Shape& s : kShapes)
    for (int cell = 0; cell < 4; cell++)
      for (const Precision precision : {Precision::bf16, Precision::fp16, Precision::tf32, Precision::fp32})
        if (s.cell < 0 || s.cell == cell)
          take(Instance{cell, precision, s.pass, s.exchange, s.masked, s.H, s.units, s.rows, s.chains, s.k_split,
                        s.k_registers, s.cluster});
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
}  // namespace small
inline constexpr auto kInstances = small::table();
}  // namespace fusedrnn::cuda
