#include "cuda/instantiate.h"

namespace fusedrnn::cuda {
template const KernelTable& kernels<kRnnTanh, Precision::tf32, Pass::forward>();
}  // namespace fusedrnn::cuda
