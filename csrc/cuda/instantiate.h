// Compiles the kernels of a cell, precision and pass: for the files of instances/ only.
#pragma once
#include <utility>

#include "cuda/kernels.h"
#include "cuda/scatter.h"
#include "cuda/split.h"

namespace fusedrnn::cuda {
template <Instance I>
Kernel kernel_of() {
  const void* const pack = reinterpret_cast<const void*>(pack_weights<packing(I)>);
  if constexpr (I.exchange == Exchange::scatter)
    return {reinterpret_cast<const void*>(scan_scatter<I>), pack};
  else if constexpr (I.exchange == Exchange::split)
    return {reinterpret_cast<const void*>(scan_split<I>), pack};
  else
    return {reinterpret_cast<const void*>(scan<I>), pack};
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
