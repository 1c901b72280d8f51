// The CPU kernels of the ops in csrc/ops.cpp, where their schemas are.
#pragma once
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fusedrnn::cpu {
inline void check_type(ScalarType type) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16,
                  "fusedrnn: the CPU kernel takes float32, float64 and bfloat16; convert the tensors, or use "
                  "backend=\"reference\"");
}
inline void check_route(int64_t route) {
  STD_TORCH_CHECK(route == 0, "fusedrnn: route: the CPU kernel has one; expected 0, got ", route);
}
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> scan(
    const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
    const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
    const OptionalTensor& reset_h, const OptionalTensor& reset_c, const OptionalTensor& offsets,
    const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell, int64_t directions, bool save,
    const OptionalTensor& x, const OptionalTensor& weight_ih, const OptionalTensor& bias_ih, int64_t route);
std::tuple<Tensor, Tensor, Tensor, Tensor> scan_backward(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dgates, const OptionalTensor& dcs,
    const OptionalTensor& dcn, const Tensor& gates, const Tensor& y, const OptionalTensor& h0, const OptionalTensor& cs,
    const OptionalTensor& c0, const Tensor& weight_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
    int64_t cell, int64_t directions, int64_t route, const OptionalTensor& offsets, const OptionalTensor& mask_key,
    const std::vector<double>& rates);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer(const Tensor& x, const OptionalTensor& h0,
                                                         const OptionalTensor& c0, const std::vector<Tensor>& weights,
                                                         const OptionalTensor& lengths, const OptionalTensor& reset,
                                                         int64_t cell, bool bias, bool save, bool states);
std::vector<Tensor> layer_backward(const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcs,
                                   const OptionalTensor& dcn, const Tensor& x, const OptionalTensor& h0,
                                   const OptionalTensor& c0, const std::vector<Tensor>& weights, const Tensor& y,
                                   const Tensor& cs, const Tensor& kept, const OptionalTensor& lengths,
                                   const OptionalTensor& reset, int64_t cell, bool bias, int64_t wanted);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_scan(
    const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
    const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset, const Tensor& gain_hh,
    const OptionalTensor& gain_c, const OptionalTensor& shift_c, const OptionalTensor& mask_key,
    const std::vector<double>& rates, int64_t cell, int64_t directions, bool save, int64_t route);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_scan_backward(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcs, const OptionalTensor& dcn,
    const Tensor& gates, const Tensor& y, const OptionalTensor& h0, const OptionalTensor& cs, const OptionalTensor& c0,
    const Tensor& weight_hh, const Tensor& products, const OptionalTensor& lengths, const OptionalTensor& reset,
    const Tensor& gain_hh, const OptionalTensor& gain_c, const OptionalTensor& shift_c, const OptionalTensor& mask_key,
    const std::vector<double>& rates, int64_t cell, int64_t directions, int64_t route);
Tensor pointwise(const Tensor& x, bool tanh);
}  // namespace fusedrnn::cpu
