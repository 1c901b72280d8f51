// Checks shared by the CPU ops. User-facing validation is Python's (fusedrnn/functional.py); these keep a direct caller
// of an op from reading outside a tensor.
#pragma once
#include <string>
#include <vector>

#include "tensors.h"

namespace fusedrnn::cpu {
inline std::string shape_text(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); i++) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}
inline std::string shape_text(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); i++) sizes.push_back(t.size(i));
  return shape_text(sizes);
}

inline void check_shape(const char* name, const Tensor& t, const std::vector<int64_t>& expected) {
  bool same = t.dim() == int64_t(expected.size());
  for (int64_t i = 0; same && i < t.dim(); i++) same = t.size(i) == expected[i];
  STD_TORCH_CHECK(same, "fusedrnn: ", name, ": expected ", shape_text(expected), ", got ", shape_text(t));
  STD_TORCH_CHECK(t.is_cpu(), "fusedrnn: ", name, ": expected a CPU tensor");
}
inline void check_like(const char* name, const OptionalTensor& t, const std::vector<int64_t>& expected,
                       ScalarType type) {
  if (!t) return;
  check_shape(name, *t, expected);
  STD_TORCH_CHECK(t->scalar_type() == type, "fusedrnn: ", name, ": expected the dtype of the other tensors");
}
// As check_like, for a gradient: autograd passes empty tensors for absent ones.
inline void check_gradient(const char* name, const OptionalTensor& t, const std::vector<int64_t>& expected,
                           ScalarType type) {
  if (t && t->dim() > 1) check_like(name, t, expected, type);
}
inline void check_type(ScalarType type) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16,
                  "fusedrnn: the CPU kernel takes float32, float64 and bfloat16; convert the tensors, or use "
                  "backend=\"reference\"");
}
inline void check_cell(int64_t cell, int64_t directions) {
  STD_TORCH_CHECK(cell >= kGru && cell <= kRnnRelu,
                  "fusedrnn: cell: expected 0 (GRU), 1 (LSTM), 2 (RNN tanh) or 3 (RNN relu), got ", cell);
  STD_TORCH_CHECK(directions == 1 || directions == 2, "fusedrnn: directions: expected 1 or 2, got ", directions);
}

// lengths [S, B] or [B] int64; reset [T, B, S] or [T, B] bool. The short forms hold for every stream.
inline Rows check_rows(const OptionalTensor& lengths, const OptionalTensor& reset, int64_t T, int64_t B, int64_t S,
                       bool by_stream) {
  Rows rows{};
  if (lengths) {
    check_shape("lengths", *lengths, by_stream ? std::vector<int64_t>{S, B} : std::vector<int64_t>{B});
    STD_TORCH_CHECK(lengths->scalar_type() == ScalarType::Long, "fusedrnn: lengths: expected int64");
    rows.lengths = data<const int64_t>(*lengths);
    rows.length_s = by_stream ? lengths->stride(0) : 0;
    rows.length_b = lengths->stride(lengths->dim() - 1);
  }
  if (reset) {
    check_shape("reset", *reset, by_stream ? std::vector<int64_t>{T, B, S} : std::vector<int64_t>{T, B});
    STD_TORCH_CHECK(reset->scalar_type() == ScalarType::Bool, "fusedrnn: reset: expected bool");
    rows.reset = data<const bool>(*reset);
    rows.reset_t = reset->stride(0);
    rows.reset_b = reset->stride(1);
    rows.reset_s = by_stream ? reset->stride(2) : 0;
  }
  return rows;
}
}  // namespace fusedrnn::cpu
