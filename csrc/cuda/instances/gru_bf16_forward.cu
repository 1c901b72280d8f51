#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kGru, Precision::bf16, Pass::forward>();
}  // namespace fusedrnn::cuda
