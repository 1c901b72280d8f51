// Tensors of torch's stable ABI as the kernels' pointers, and fresh ones. Included by op files only.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <type_traits>

#include "poison.h"
#include "recurrence.h"

namespace fusedrnn {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What the kernels compute in: bfloat16 runs in float, state and sums included.
inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  constexpr int kMost = 4;
  int64_t strides[kMost], step = 1;
  for (int i = int(sizes.size()) - 1; i >= 0; i--) strides[i] = step, step *= sizes.begin()[i];
  AtenTensorHandle handle = nullptr;
  const int32_t dtype = type == ScalarType::Double  ? aoti_torch_dtype_float64()
                        : type == ScalarType::Float ? aoti_torch_dtype_float32()
                                                    : aoti_torch_dtype_bfloat16();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  const Tensor fresh(handle);
  if (poisoned() && step)  // torch's own filling, of deterministic mode, does not reach this function
    std::memset(fresh.mutable_data_ptr(), kPoison,
                size_t(step) * (type == ScalarType::Double  ? 8
                                : type == ScalarType::Float ? 4
                                                            : 2));
  return fresh;
}

inline Tensor as_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}
// Contiguous along the last axis; a copy only where the caller's tensor is not.
inline Tensor rows_of(const Tensor& t, ScalarType type) {
  const Tensor u = as_type(t, type);
  return u.size(u.dim() - 1) <= 1 || u.stride(u.dim() - 1) == 1 ? u : torch::stable::contiguous(u);
}
inline Tensor dense(const Tensor& t, ScalarType type) {
  const Tensor u = as_type(t, type);
  return u.is_contiguous() ? u : torch::stable::contiguous(u);
}
// Autograd passes empty tensors for absent gradients.
inline OptionalTensor rows_of(const OptionalTensor& t, ScalarType type) {
  return t && t->dim() > 1 ? OptionalTensor(rows_of(*t, type)) : std::nullopt;
}
inline OptionalTensor dense(const OptionalTensor& t, ScalarType type) {
  return t && t->dim() > 1 ? OptionalTensor(dense(*t, type)) : std::nullopt;
}

template <class T>
T* data(const Tensor& t) {
  using Value = std::remove_const_t<T>;
  if (t.numel() == 0) return nullptr;
  if constexpr (std::is_const_v<T>)
    return static_cast<const Value*>(t.const_data_ptr());
  else
    return static_cast<Value*>(t.mutable_data_ptr());
}
template <class T>
T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}
// [T, B, S, N] by strides; absent, or one of autograd's empty stand-ins: null.
template <class T>
Sequence<T> sequence(const Tensor& t) {
  if (t.dim() != 4 || t.numel() == 0) return {nullptr, 0, 0, 0};
  return {data<T>(t), t.stride(0), t.stride(1), t.stride(2)};
}
template <class T>
Sequence<T> sequence(const OptionalTensor& t) {
  return t ? sequence<T>(*t) : Sequence<T>{nullptr, 0, 0, 0};
}
}  // namespace fusedrnn
