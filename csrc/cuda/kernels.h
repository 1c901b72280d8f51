// The compiled kernels behind the rows of the table of instances. Each file of instances/ compiles those of a cell,
// precision and pass; run.cpp reaches them through pointers and needs no CUDA compiler.
#pragma once
#include "cuda/instances.h"
#include "cuda/params.h"

namespace fusedrnn::cuda {
// Pointers to kernels: void(Params), and void(const char* w, char* packed, int H).
struct Kernel {
  const void *scan, *pack;
};
// A row's kernels; null in the rows of other cells, precisions and passes.
using KernelTable = std::array<Kernel, kInstances.size()>;
template <int cell, Precision precision, Pass pass>
const KernelTable& kernels();

// void(CutsParams) and void(FillParams): see pack.h.
const void* pack_cuts_kernel();
const void* fill_rows_kernel();
}  // namespace fusedrnn::cuda
