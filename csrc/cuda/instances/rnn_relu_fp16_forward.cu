#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kRnnRelu, Precision::fp16, Pass::forward>();
}  // namespace fusedrnn::cuda
