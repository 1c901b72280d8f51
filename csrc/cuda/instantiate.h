// Compiles the kernels of a cell, precision and pass: for the files of instances/ only.
#pragma once
#include <utility>

#include "cuda/kernels.h"
#include "cuda/scatter.h"
#include "cuda/split.h"

namespace fusedrnn::cuda {
// Kernels are templates of an instance's fields: nvcc cannot name a kernel whose template argument is of a class.
template <int cell, int precision, int pass, int exchange, int masked, int H, int units, int rows, int chains,
          int k_split, int k_registers, int cluster>
inline constexpr Instance kInstanceOf{
    cell,    Precision(precision), Pass(pass), Exchange(exchange), masked != 0, H, units, rows, chains,
    k_split, k_registers,          cluster};

template <int... kFields>
FUSEDRNN_KERNEL(kInstanceOf<kFields...>.threads())
scan_kernel(const Params p) {
  constexpr Instance i = kInstanceOf<kFields...>;
  if constexpr (i.exchange == Exchange::scatter)
    scan_scatter<i>(p);
  else if constexpr (i.exchange == Exchange::split)
    scan_split<i>(p);
  else
    scan<i>(p);
}

template <int... kFields>
FUSEDRNN_KERNEL(kPackThreads)
pack_kernel(const char* given, char* packed, int H) {
  constexpr Instance i = kInstanceOf<kFields...>;
  pack_weights<i>(given, packed, H);
}

template <Instance I>
Kernel kernel_of() {
  constexpr Instance P = packing(I);
  return {
      reinterpret_cast<const void*>(scan_kernel<I.cell, int(I.precision), int(I.pass), int(I.exchange), int(I.masked),
                                                I.H, I.units, I.rows, I.chains, I.k_split, I.k_registers, I.cluster>),
      reinterpret_cast<const void*>(pack_kernel<P.cell, int(P.precision), int(P.pass), int(P.exchange), int(P.masked),
                                                P.H, P.units, P.rows, P.chains, P.k_split, P.k_registers, P.cluster>)};
}

template <int cell, Precision precision, Pass pass, size_t kRow>
Kernel kernel_in_row() {
  constexpr Instance i = kInstances[kRow];
  if constexpr (i.cell == cell && i.precision == precision && i.pass == pass)
    return kernel_of<i>();
  else
    return {nullptr, nullptr};
}

template <int cell, Precision precision, Pass pass>
const KernelTable& kernels() {
  static const KernelTable table = []<size_t... kRows>(std::index_sequence<kRows...>) {
    return KernelTable{kernel_in_row<cell, precision, pass, kRows>()...};
  }(std::make_index_sequence<kInstances.size()>());
  return table;
}
}  // namespace fusedrnn::cuda
