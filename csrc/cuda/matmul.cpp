#include "cuda/matmul.h"

#include "check.h"
#include "cuda/torch_device.h"

#if !defined(FUSEDRNN_HOST_DEVICE)
#include <dlfcn.h>

extern "C" AOTITorchError torch_get_current_cuda_blas_handle(void** ret_handle);
#endif

namespace fusedrnn::cuda {
#if defined(FUSEDRNN_HOST_DEVICE)
Tensor product(const Tensor& a, const Tensor& b, bool) { return torch::stable::matmul(a, b); }
#else
namespace {
// Of cublas_api.h and library_types.h, which a machine that only has torch and nvcc may lack; fixed by cuBLAS's ABI.
constexpr int kNoTranspose = 0, kTranspose = 1, kFloat = 0, kFullFloat = 69, kTf32 = 77, kDefaultAlgorithm = -1;
using GemmEx = int (*)(void* handle, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k,
                       const void* alpha, const void* a, int a_type, int64_t lda, const void* b, int b_type,
                       int64_t ldb, const void* beta, void* c, int c_type, int64_t ldc, int compute, int algorithm);

// torch's own cuBLAS, which is in the process already: a second copy would know nothing of torch's handle.
GemmEx gemm_ex() {
  static const GemmEx found = [] {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"})
      if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD))
        if (void* symbol = dlsym(library, "cublasGemmEx_64")) return reinterpret_cast<GemmEx>(symbol);
    return GemmEx(nullptr);
  }();
  STD_TORCH_CHECK(found, "fusedrnn: product: torch has loaded no cuBLAS 12 or 13");
  return found;
}

struct Operand {  // a row-major matrix as cuBLAS sees it: the transposed one, column-major
  Tensor tensor;
  int transpose;
  int64_t leading;
};
Operand operand(const Tensor& t) {
  const auto fits = [](int64_t inner, int64_t outer, int64_t width) {
    return inner == 1 && outer >= width && outer > 0;
  };
  if (fits(t.stride(1), t.stride(0), t.size(1))) return {t, kNoTranspose, t.stride(0)};
  if (fits(t.stride(0), t.stride(1), t.size(0))) return {t, kTranspose, t.stride(1)};
  return {torch::stable::contiguous(t), kNoTranspose, t.size(1)};
}
}  // namespace

Tensor product(const Tensor& a, const Tensor& b, bool tf32) {
  STD_TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0),
                  "fusedrnn: product: expected [M, K] and "
                  "[K, N], got ",
                  shape_text(a), " and ", shape_text(b));
  STD_TORCH_CHECK(
      a.scalar_type() == ScalarType::Float && b.scalar_type() == ScalarType::Float && a.device() == b.device(),
      "fusedrnn: product: expected two float32 tensors on one device");
  const Guard guard(a);
  const int64_t M = a.size(0), K = a.size(1), N = b.size(1);
  Tensor c = fresh(a, {M, N});
  if (M == 0 || N == 0) return c;
  if (K == 0) return torch::stable::zero_(c);
  const Operand left = operand(a), right = operand(b);
  const float one = 1, zero = 0;
  void* handle = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  // row-major c = a b is column-major c' = b' a'
  const int status = gemm_ex()(handle, right.transpose, left.transpose, N, M, K, &one, right.tensor.const_data_ptr(),
                               kFloat, right.leading, left.tensor.const_data_ptr(), kFloat, left.leading, &zero,
                               c.mutable_data_ptr(), kFloat, N, tf32 ? kTf32 : kFullFloat, kDefaultAlgorithm);
  STD_TORCH_CHECK(status == 0, "fusedrnn: product: cublasGemmEx failed with status ", status);
  return c;
}
#endif
}  // namespace fusedrnn::cuda
