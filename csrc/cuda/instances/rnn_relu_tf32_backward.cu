#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kRnnRelu, Precision::tf32, Pass::backward>();
}  // namespace fusedrnn::cuda
