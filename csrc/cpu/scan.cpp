// The ops `scan` and `scan_backward`: the recurrence from given projections, and its adjoint down to the gates; and
// `norm_scan` and `norm_scan_backward`, the same with layer normalisation.
#include "check.h"
#include "cpu/kernel.h"
#include "cpu/ops.h"
#include "cpu/team.h"

namespace fusedrnn::cpu {
namespace {
// [T, B, S, Z H], where a value's H units lie together: the form an op returns.
template <class T>
Kept<T> gates_view(const Tensor& t, int64_t H) {
  if (t.dim() != 4 || t.numel() == 0) return {nullptr, 0, 0, 0, 0, 0, false};
  return {data<T>(t), t.stride(0), t.stride(1), t.stride(2), instruction_set().vector_bytes / int64_t(sizeof(T)),
          H,          false};
}

template <class T>
std::vector<Weights<const T>> recurrent_weights(const Tensor& w, const OptionalTensor& bias) {
  std::vector<Weights<const T>> streams;
  for (int64_t s = 0; s < w.size(0); s++)
    streams.push_back({nullptr, data<const T>(w) + s * w.size(1) * w.size(2), nullptr,
                       bias ? data<const T>(*bias) + s * w.size(1) : nullptr});
  return streams;
}

// Gains and shifts of layer normalisation; nothing without it.
struct NormTensors {
  OptionalTensor hh, c, c_shift;

  NormTensors in(ScalarType type) const { return {dense(hh, type), dense(c, type), dense(c_shift, type)}; }
  template <class T>
  Norms<const T> pointers() const {
    return {data<const T>(hh), data<const T>(c), data<const T>(c_shift)};
  }
};
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Six forward(const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
            const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
            const NormTensors& norms, const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell,
            int64_t directions, bool save, int64_t route) {
  const Noise noise = check_noise(mask_key, rates, cell);
  check_route(route);
  check_type(gates_x.scalar_type());
  const Sizes n = check_scan(gates_x, h0, c0, weight_hh, bias_hh, cell, directions);
  const int64_t T = n.T, B = n.B, S = n.S, H = n.H, G = n.G, Z = n.Z;
  const bool lstm = cell == kLstm, normed = norms.hh.has_value();
  const ScalarType type = gates_x.scalar_type(), compute = forward_type(type, save || noise.any() || normed);
  if (normed) check_norms(*norms.hh, norms.c, norms.c_shift, n, cell, type);

  Tensor y = empty({T, B, S, H}, compute), hn = empty({S, B, H}, compute);
  Tensor gates = save && Z ? empty({T, B, S, Z * H}, compute) : empty({0}, compute);
  Tensor cs = lstm ? empty({T, B, S, H}, compute) : empty({0}, compute),
         cn = lstm ? empty({S, B, H}, compute) : empty({0}, compute),
         products = save && normed ? empty({T, B, S, G * H}, compute) : empty({0}, compute);
  const NormTensors gains = norms.in(compute);
  const Tensor projections = rows_of(gates_x, compute), w = dense(weight_hh, compute);
  const OptionalTensor bias = dense(bias_hh, compute), h = dense(h0, compute), c = dense(c0, compute);
  const auto run = [&](auto zero) {
    using R = decltype(zero);
    const Kernels<R>& k = kernels<R>();
    const auto weights = recurrent_weights<R>(w, bias);
    ForwardCall<R> f{};
    f.problem = {int(cell), int(directions), T, B, S, H, 0, noise.dropout > 0, normed};
    f.rows = check_rows(lengths, reset, T, B, S, true);
    f.noise = noise;
    f.norms = gains.pointers<R>(), f.products = sequence<R>(products);
    f.gates_x = sequence<const R>(projections);
    f.weights = weights.data();
    f.h0 = data<const R>(h), f.c0 = data<const R>(c);
    f.y = sequence<R>(y), f.cs = sequence<R>(cs), f.kept = gates_view<R>(gates, H);
    f.hn = data<R>(hn), f.cn = data<R>(cn);
    run_call<R>(
        f, [&](const Machine& m) { return plan_forward(f.problem, int(G), sizeof(R), m); },
        [&](const Plan& plan) { return k.forward_scratch(f.problem, plan); },
        [&](int thread) { k.forward(f, thread); });
  };
  if (B) run_in(compute, run);
  return {as_type(y, type),  as_type(hn, type), as_type(gates, type),
          as_type(cs, type), as_type(cn, type), as_type(products, type)};
}

Five backward(const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dgates,
              const OptionalTensor& dcs, const OptionalTensor& dcn, const Tensor& gates, const Tensor& y,
              const OptionalTensor& h0, const OptionalTensor& cs, const OptionalTensor& c0, const Tensor& weight_hh,
              const OptionalTensor& products, const OptionalTensor& lengths, const OptionalTensor& reset,
              const NormTensors& norms, const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell,
              int64_t directions, int64_t route) {
  check_route(route);
  const Noise noise = check_noise(mask_key, rates, cell);
  check_mean(noise, cell_kept(int(cell)));
  check_type(y.scalar_type());
  const Sizes n = check_scan_backward(dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight_hh, cell, directions);
  const int64_t T = n.T, B = n.B, S = n.S, H = n.H, G = n.G, Z = n.Z;
  const ScalarType type = y.scalar_type(), compute = compute_type(type);
  const bool lstm = cell == kLstm, gru = cell == kGru, normed = norms.hh.has_value();
  if (normed) {
    check_norms(*norms.hh, norms.c, norms.c_shift, n, cell, type);
    check_like("products", products, {T, B, S, G * H}, type);
  }

  Tensor dgates_x = empty({T, B, S, G * H}, compute), dh0 = empty({S, B, H}, compute);
  Tensor dc0 = lstm ? empty({S, B, H}, compute) : empty({0}, compute),
         dq = gru || (lstm && normed) ? empty({T, B, S, H}, compute) : empty({0}, compute),
         dproducts = normed ? empty({T, B, S, G * H}, compute) : empty({0}, compute);
  const NormTensors gains = norms.in(compute);
  const OptionalTensor products_ = rows_of(products, compute);
  const OptionalTensor dy_ = rows_of(dy, compute), dgates_ = rows_of(dgates, compute), dcs_ = rows_of(dcs, compute),
                       cs_ = rows_of(cs, compute);
  const OptionalTensor dhn_ = dense(dhn, compute), dcn_ = dense(dcn, compute), h = dense(h0, compute),
                       c = dense(c0, compute);
  const Tensor kept = gates.dim() == 4 ? rows_of(gates, compute) : gates, y_ = rows_of(y, compute),
               w = dense(weight_hh, compute);
  const auto run = [&](auto zero) {
    using R = decltype(zero);
    const Kernels<R>& k = kernels<R>();
    const auto weights = recurrent_weights<R>(w, std::nullopt);
    BackwardCall<R> f{};
    f.problem = {int(cell), int(directions), T, B, S, H, 0, noise.dropout > 0, normed};
    f.rows = check_rows(lengths, reset, T, B, S, true);
    f.noise = noise;
    f.norms = gains.pointers<R>(), f.products = sequence<const R>(products_), f.dproducts = sequence<R>(dproducts);
    f.weights = weights.data();
    f.h0 = data<const R>(h), f.c0 = lstm ? data<const R>(c) : nullptr;
    f.y = sequence<const R>(y_), f.cs = lstm ? sequence<const R>(cs_) : Sequence<const R>{nullptr, 0, 0, 0};
    f.kept = gates_view<const R>(kept, H);
    if (Z && dgates_) f.dkept = gates_view<const R>(*dgates_, H);
    f.dy = sequence<const R>(dy_);
    if (lstm) f.dcs = sequence<const R>(dcs_);
    f.dhn = data<const R>(dhn_), f.dcn = data<const R>(dcn_);
    f.dgates_x = sequence<R>(dgates_x), f.dq = sequence<R>(dq);
    f.dh0 = data<R>(dh0), f.dc0 = data<R>(dc0);
    run_call<R>(
        f, [&](const Machine& m) { return plan_backward(f.problem, int(G), sizeof(R), m); },
        [&](const Plan& plan) { return k.backward_scratch(f.problem, plan, false, false); },
        [&](int thread) { k.backward(f, thread); });
  };
  if (B) compute == ScalarType::Double ? run(0.) : run(0.f);
  return {as_type(dgates_x, type), as_type(dh0, type), as_type(dc0, type), as_type(dq, type),
          as_type(dproducts, type)};
}
}  // namespace

Five scan(const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
          const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
          const OptionalTensor& reset_h, const OptionalTensor& reset_c, const OptionalTensor& offsets,
          const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell, int64_t directions, bool save,
          const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t route) {
  check_reserved(reset_h, reset_c, offsets);
  auto [y, hn, gates, cs, cn, products] = forward(gates_x, h0, c0, weight_hh, bias_hh, lengths, reset, {}, mask_key,
                                                  rates, cell, directions, save, route);
  return {y, hn, gates, cs, cn};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scan_backward(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dgates, const OptionalTensor& dcs,
    const OptionalTensor& dcn, const Tensor& gates, const Tensor& y, const OptionalTensor& h0, const OptionalTensor& cs,
    const OptionalTensor& c0, const Tensor& weight_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
    int64_t cell, int64_t directions, int64_t route, const OptionalTensor& offsets, const OptionalTensor& mask_key,
    const std::vector<double>& rates) {
  STD_TORCH_CHECK(!offsets, "fusedrnn: scan_backward: offsets: the CPU kernel takes no packed rows");
  auto [dgates_x, dh0, dc0, dq, dproducts] =
      backward(dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight_hh, std::nullopt, lengths, reset, {}, mask_key,
               rates, cell, directions, route);
  return {dgates_x, dh0, dc0, dq};
}

Six norm_scan(const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
              const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
              const Tensor& gain_hh, const OptionalTensor& gain_c, const OptionalTensor& shift_c,
              const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell, int64_t directions,
              bool save, int64_t route) {
  return forward(gates_x, h0, c0, weight_hh, bias_hh, lengths, reset, {gain_hh, gain_c, shift_c}, mask_key, rates, cell,
                 directions, save, route);
}

Five norm_scan_backward(const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcs,
                        const OptionalTensor& dcn, const Tensor& gates, const Tensor& y, const OptionalTensor& h0,
                        const OptionalTensor& cs, const OptionalTensor& c0, const Tensor& weight_hh,
                        const Tensor& products, const OptionalTensor& lengths, const OptionalTensor& reset,
                        const Tensor& gain_hh, const OptionalTensor& gain_c, const OptionalTensor& shift_c,
                        const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell,
                        int64_t directions, int64_t route) {
  return backward(dy, dhn, std::nullopt, dcs, dcn, gates, y, h0, cs, c0, weight_hh, products, lengths, reset,
                  {gain_hh, gain_c, shift_c}, mask_key, rates, cell, directions, route);
}

Tensor pointwise(const Tensor& x, bool tanh) {
  check_type(x.scalar_type());
  const bool narrow = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(x.is_contiguous() && (!narrow || multiplies_bfloat()),
                  "fusedrnn: pointwise: expected a contiguous float32 or float64 tensor, or bfloat16 with AMX");
  Tensor y = torch::stable::empty_like(x);
  if (x.scalar_type() == ScalarType::Double)
    kernels<double>().pointwise(tanh, data<const double>(x), data<double>(y), x.numel());
  else if (narrow)
    kernels<Bfloat>().pointwise(tanh, data<const Bfloat>(x), data<Bfloat>(y), x.numel());
  else
    kernels<float>().pointwise(tanh, data<const float>(x), data<float>(y), x.numel());
  return y;
}
}  // namespace fusedrnn::cpu
