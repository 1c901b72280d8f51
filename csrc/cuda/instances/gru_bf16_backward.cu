#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kGru, Precision::bf16, Pass::backward>();
}  // namespace fusedrnn::cuda
