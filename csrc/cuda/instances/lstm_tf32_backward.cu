#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kLstm, Precision::tf32, Pass::backward>();
}  // namespace fusedrnn::cuda
