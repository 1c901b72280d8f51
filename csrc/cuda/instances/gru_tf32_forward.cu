#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kGru, Precision::tf32, Pass::forward>();
}  // namespace fusedrnn::cuda
