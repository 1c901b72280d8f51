#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kLstm, Precision::fp16, Pass::forward>();
}  // namespace fusedrnn::cuda
