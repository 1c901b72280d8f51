// One compiled kernel as data: what it takes and how it is laid out. A template argument of the kernels, a row of the
// table that the planner reads. No CUDA.
#pragma once
#include "cuda/call.h"

namespace fusedrnn::cuda {
// How the vector of a step (forward: h, backward: gate gradients, or partial sums of dh) passes between the CTAs of a
// team: see exchange.h.
enum class Exchange : int {
  cta,      // one CTA, its shared memory
  cluster,  // every CTA of a cluster gets the whole vector, by st.async
  scatter,  // cluster, backward: partial sums of dh to their owners, by st.async
  grid,     // the output itself, in L2
  split,    // grid, and the k dimension split over clusters
};
constexpr Regime regime_of(Exchange e) {
  return e == Exchange::cta                                 ? Regime::cta
         : e == Exchange::cluster || e == Exchange::scatter ? Regime::cluster
                                                            : Regime::grid;
}

struct Instance {
  int cell;  // CellKind
  Precision precision;
  Pass pass;
  Exchange exchange;
  bool masked;      // takes lengths, resets, packed rows, and H below its own
  int H;            // hidden units it is built for; takes exactly these, or up to these if masked
  int units;        // of them in one CTA: a team has H / units CTAs
  int rows;         // batch rows of a chain, a multiple of 8
  int chains;       // independent chains of rows in a CTA, interleaved to hide the exchange
  int k_split;      // warps that share the k dimension of 16 units
  int k_registers;  // k-tiles of the weights that stay in a warp's registers; the others in shared memory
  int cluster;      // CTAs of a cluster: the team, or for `split` its part; 1 if there is none

  constexpr int team() const { return H / units; }
  constexpr int warps() const { return units / 16 * k_split; }
  constexpr int threads() const { return 32 * warps(); }
  constexpr int group_rows() const { return rows * chains; }
};
}  // namespace fusedrnn::cuda
