#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kLstm, Precision::bf16, Pass::backward>();
}  // namespace fusedrnn::cuda
