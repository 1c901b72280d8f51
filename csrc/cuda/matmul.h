// The op `product`: a float32 matrix product whose precision is its own argument. torch.mm obeys a global flag that is
// not the recurrent layers' (torch.backends.cuda.matmul against torch.backends.cudnn.rnn), and a library shall not
// touch the user's flags.
#pragma once
#include "tensors.h"

namespace fusedrnn::cuda {
// a [M, K] times b [K, N], float32, by cuBLAS: TF32 operands if tf32, full float32 otherwise.
Tensor product(const Tensor& a, const Tensor& b, bool tf32);
}  // namespace fusedrnn::cuda
