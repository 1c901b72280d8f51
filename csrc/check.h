// Checks shared by the ops. User-facing validation is Python's (fusedrnn/functional.py); these keep a direct caller
// of an op from reading outside a tensor.
#pragma once
#include <string>
#include <vector>

#include "tensors.h"

namespace fusedrnn {
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
  if (t && (t->dim() != 1 || t->numel())) check_like(name, t, expected, type);
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

struct Sizes {
  int64_t T, B, S, H, G, Z;
};
// The arguments of the op `scan`; the shapes are those of fusedrnn/reference.py. `batch`: rows of a batch where steps lie
// packed, [N, 1, S, ...] in place of [T, B, S, ...].
inline Sizes check_scan(const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0,
                        const Tensor& weight_hh, const OptionalTensor& bias_hh, int64_t cell, int64_t directions,
                        int64_t batch = -1) {
  check_cell(cell, directions);
  STD_TORCH_CHECK(gates_x.dim() == 4 && weight_hh.dim() == 3,
                  "fusedrnn: expected gates_x [T, B, S, G*H] and weight_hh [S, G*H, H], got ", shape_text(gates_x),
                  " and ", shape_text(weight_hh));
  const int64_t T = gates_x.size(0), B = gates_x.size(1), S = gates_x.size(2), H = weight_hh.size(2),
                G = kGatesOf[cell];
  const ScalarType type = gates_x.scalar_type();
  STD_TORCH_CHECK(S % directions == 0, "fusedrnn: expected a multiple of ", directions, " streams, got ", S);
  STD_TORCH_CHECK(T > 0, "fusedrnn: gates_x: expected at least one step");
  STD_TORCH_CHECK(S > 0 && H > 0, "fusedrnn: expected at least one stream and one hidden unit, got ", S, " and ", H);
  check_shape("gates_x", gates_x, {T, B, S, G * H});
  check_like("weight_hh", weight_hh, {S, G * H, H}, type);
  check_like("bias_hh", bias_hh, {S, G * H}, type);
  const int64_t edge = batch < 0 ? B : batch;
  check_like("h0", h0, {S, edge, H}, type);
  check_like("c0", c0, {S, edge, H}, type);
  STD_TORCH_CHECK(cell == kLstm || !c0, "fusedrnn: c0 is for the LSTM only");
  return {T, B, S, H, G, kKeptOf[cell]};
}
// What the schemas hold for who implements it.
inline void check_reserved(const OptionalTensor& reset_h, const OptionalTensor& reset_c,
                           const OptionalTensor& offsets) {
  const auto refuse = [](const char* name, bool given) {
    STD_TORCH_CHECK(!given, "fusedrnn: scan: ", name, " is reserved and not taken by the kernels yet; pass None");
  };
  refuse("reset_h", reset_h.has_value());
  refuse("reset_c", reset_c.has_value());
  refuse("offsets", offsets.has_value());
}
// mask_key [2], which is not read, and rates.
inline Noise check_rates(const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell) {
  Noise noise{};
  if (rates.empty()) return noise;
  STD_TORCH_CHECK(rates.size() == 3,
                  "fusedrnn: rates: expected those of zoneout of h, zoneout of c and recurrent dropout, or none, got ",
                  rates.size());
  for (const double rate : rates)
    STD_TORCH_CHECK(rate >= 0 && rate <= 1, "fusedrnn: rates: expected probabilities, got ", rate);
  STD_TORCH_CHECK(cell == kLstm || rates[1] == 0, "fusedrnn: rates: only the LSTM has a c, and zoneout of it");
  STD_TORCH_CHECK(mask_key || rates[2] == 0,
                  "fusedrnn: rates: recurrent dropout is drawn by a mask_key: expected one, or a rate of 0");
  noise.zoneout_h = rates[0], noise.zoneout_c = rates[1], noise.dropout = rates[2];
  if (mask_key) {
    check_shape("mask_key", *mask_key, {2});
    STD_TORCH_CHECK(mask_key->scalar_type() == ScalarType::Long, "fusedrnn: mask_key: expected int64");
    noise.drawn = true;
  }
  return noise;
}
// The same with the key, which is on the CPU.
inline Noise check_noise(const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell) {
  Noise noise = check_rates(mask_key, rates, cell);
  if (noise.drawn && mask_key)
    for (int i = 0; i < 2; i++) noise.key[i] = uint32_t(data<const int64_t>(*mask_key)[i * mask_key->stride(0)]);
  return noise;
}
// Of the adjoint. `kept`: whether the cell keeps gates for it.
inline void check_mean(const Noise& noise, bool kept) {
  STD_TORCH_CHECK(
      noise.drawn || noise.zoneout_h == 0 || kept,
      "fusedrnn: rates: the adjoint of an RNN with zoneout's expectation cannot be had from its output alone");
}
// Gains and shifts of layer normalisation.
inline void check_norms(const Tensor& gain_hh, const OptionalTensor& gain_c, const OptionalTensor& shift_c,
                        const Sizes& n, int64_t cell, ScalarType type) {
  check_like("gain_hh", gain_hh, {n.S, n.G * n.H}, type);
  check_like("gain_c", gain_c, {n.S, n.H}, type);
  check_like("shift_c", shift_c, {n.S, n.H}, type);
  STD_TORCH_CHECK(gain_c.has_value() == (cell == kLstm) && (gain_c || !shift_c),
                  "fusedrnn: gain_c, shift_c: the LSTM has a gain of c and may have a shift, other cells have none");
}
// The arguments of the op `scan_backward`.
inline Sizes check_scan_backward(const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dgates,
                                 const OptionalTensor& dcs, const OptionalTensor& dcn, const Tensor& gates,
                                 const Tensor& y, const OptionalTensor& h0, const OptionalTensor& cs,
                                 const OptionalTensor& c0, const Tensor& weight_hh, int64_t cell, int64_t directions,
                                 int64_t batch = -1) {
  check_cell(cell, directions);
  STD_TORCH_CHECK(y.dim() == 4, "fusedrnn: expected y [T, B, S, H], got ", shape_text(y));
  const int64_t T = y.size(0), B = y.size(1), S = y.size(2), H = y.size(3), G = kGatesOf[cell], Z = kKeptOf[cell];
  const ScalarType type = y.scalar_type();
  STD_TORCH_CHECK(T > 0, "fusedrnn: y: expected at least one step");
  STD_TORCH_CHECK(S > 0 && H > 0, "fusedrnn: expected at least one stream and one hidden unit, got ", S, " and ", H);
  STD_TORCH_CHECK(S % directions == 0, "fusedrnn: expected a multiple of ", directions, " streams, got ", S);
  const int64_t edge = batch < 0 ? B : batch;
  check_like("weight_hh", weight_hh, {S, G * H, H}, type);
  if (Z) check_like("gates", gates, {T, B, S, Z * H}, type);
  check_gradient("dy", dy, {T, B, S, H}, type);
  check_gradient("dhn", dhn, {S, edge, H}, type);
  check_gradient("dcn", dcn, {S, edge, H}, type);
  if (Z) check_gradient("dgates", dgates, {T, B, S, Z * H}, type);
  check_gradient("dcs", dcs, {T, B, S, H}, type);
  check_like("h0", h0, {S, edge, H}, type);
  if (cell == kLstm) {
    STD_TORCH_CHECK(cs.has_value(), "fusedrnn: the LSTM's adjoint needs cs");
    check_like("cs", cs, {T, B, S, H}, type);
    check_like("c0", c0, {S, edge, H}, type);
  }
  return {T, B, S, H, G, Z};
}
}  // namespace fusedrnn
