#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kGru, Precision::fp32, Pass::forward>();
}  // namespace fusedrnn::cuda
