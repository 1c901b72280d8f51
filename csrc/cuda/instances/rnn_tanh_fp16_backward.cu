#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kRnnTanh, Precision::fp16, Pass::backward>();
}  // namespace fusedrnn::cuda
