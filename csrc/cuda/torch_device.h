// What the op files ask torch about the device of a tensor: the current stream, a guard, fresh memory.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include "cuda/run.h"
#include "tensors.h"

#if !defined(FUSEDRNN_HOST_DEVICE)
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif

namespace fusedrnn::cuda {
#if defined(FUSEDRNN_HOST_DEVICE)
inline void* current_stream(const Tensor&) { return nullptr; }
struct Guard {
  explicit Guard(const Tensor&) {}
};
#else
inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}
struct Guard {  // the tensor's device is the current one
  torch::stable::accelerator::DeviceGuard guard;
  explicit Guard(const Tensor& t) : guard(t.get_device_index()) {}
};
#endif

inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  constexpr int kMost = 4;
  int64_t strides[kMost], step = 1;
  for (int i = int(sizes.size()) - 1; i >= 0; i--) strides[i] = step, step *= sizes.begin()[i];
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t dtype = type == ScalarType::Half       ? aoti_torch_dtype_float16()
                        : type == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                        : type == ScalarType::Double   ? aoti_torch_dtype_float64()
                        : type == ScalarType::Float    ? aoti_torch_dtype_float32()
                                                       : aoti_torch_dtype_uint8();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtype, device_type,
                                                  device_index, &handle));
  const Tensor made(handle);
  if (poisoned() && step)  // torch's own filling, of deterministic mode, does not reach this function
    poison(made.mutable_data_ptr(), size_t(step) * made.element_size(), current_stream(like));
  return made;
}
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return fresh(like, sizes, like.scalar_type());
}
}  // namespace fusedrnn::cuda
