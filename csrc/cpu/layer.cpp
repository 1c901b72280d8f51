// The ops `layer` and `layer_backward`: a whole layer of one or two directions, projections and weight gradients inside
// the kernel.
#include "check.h"
#include "cpu/kernel.h"
#include "cpu/ops.h"
#include "cpu/team.h"

namespace fusedrnn::cpu {
namespace {
// What both ops know of a layer from its arguments.
struct LayerProblem {
  Problem problem;
  ScalarType type, compute;
  int64_t per_direction;  // weights of one direction: 4 with biases, else 2
  Rows rows;

  LayerProblem(const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0, const std::vector<Tensor>& weights,
               const OptionalTensor& lengths, const OptionalTensor& reset, int64_t cell, bool bias)
      : type(x.scalar_type()), compute(compute_type(type)), per_direction(bias ? 4 : 2) {
    const int64_t D = int64_t(weights.size()) / per_direction;
    check_cell(cell, D);
    check_type(type);
    STD_TORCH_CHECK(int64_t(weights.size()) == D * per_direction, "fusedrnn: expected ", per_direction,
                    " weights a direction, got ", weights.size());
    STD_TORCH_CHECK(x.dim() == 3 && weights[1].dim() == 2, "fusedrnn: expected x [T, B, I] and w_hh [G*H, H], got ",
                    shape_text(x), " and ", shape_text(weights[1]));
    const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = weights[1].size(1), G = cell_gates(int(cell));
    problem = {int(cell), int(D), T, B, D, H, I};
    STD_TORCH_CHECK(I > 0, "fusedrnn: x: expected at least one input feature");
    STD_TORCH_CHECK(H > 0, "fusedrnn: w_hh: expected at least one hidden unit");
    STD_TORCH_CHECK(T > 0, "fusedrnn: x: expected at least one step");
    check_shape("x", x, {T, B, I});
    for (int64_t d = 0; d < D; d++) {
      const Tensor* w = &weights[d * per_direction];
      check_like("w_ih", w[0], {G * H, I}, type);
      check_like("w_hh", w[1], {G * H, H}, type);
      for (int64_t i = 2; i < per_direction; i++) check_like("bias", w[i], {G * H}, type);
    }
    check_like("h0", h0, {D, B, H}, type);
    check_like("c0", c0, {D, B, H}, type);
    rows = check_rows(lengths, reset, T, B, D, false);
  }
  int gates() const { return cell_gates(problem.cell); }
  bool lstm() const { return problem.cell == kLstm; }
  std::vector<Tensor> dense_weights(const std::vector<Tensor>& weights) const {
    std::vector<Tensor> found;
    for (const Tensor& w : weights) found.push_back(dense(w, compute));
    return found;
  }
};

template <class T>
std::vector<Weights<T>> by_direction(const std::vector<Tensor>& w, int64_t per_direction) {
  std::vector<Weights<T>> found;
  for (size_t i = 0; i < w.size(); i += per_direction)
    found.push_back({data<T>(w[i]), data<T>(w[i + 1]), per_direction == 4 ? data<T>(w[i + 2]) : nullptr,
                     per_direction == 4 ? data<T>(w[i + 3]) : nullptr});
  return found;
}

// [T, B, D*H] as [T, B, S, H].
template <class T>
Sequence<T> outputs(const Tensor& t, int64_t H) {
  if (t.dim() != 3 || t.numel() == 0) return {nullptr, 0, 0, 0};
  return {data<T>(t), t.stride(0), t.stride(1), H};
}
template <class T>
Sequence<T> outputs(const OptionalTensor& t, int64_t H) {
  return t ? outputs<T>(*t, H) : Sequence<T>{nullptr, 0, 0, 0};
}

// Memory of the pool as a tensor, which gives it back when the last one that looks at it dies.
Tensor pooled(int64_t elements, ScalarType type) {
  const size_t bytes = size_t(elements) * (type == ScalarType::Double ? 8 : 4);
  const Block block = take_block(bytes);
  const int64_t sizes[] = {elements}, strides[] = {1};
  return torch::stable::from_blob(block.data, {sizes, 1}, {strides, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  [block](void*) { give_block(block); });
}
}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer(const Tensor& x, const OptionalTensor& h0,
                                                         const OptionalTensor& c0, const std::vector<Tensor>& weights,
                                                         const OptionalTensor& lengths, const OptionalTensor& reset,
                                                         int64_t cell, bool bias, bool save, bool states) {
  LayerProblem l(x, h0, c0, weights, lengths, reset, cell, bias);
  l.compute = forward_type(l.type, save);
  const int64_t T = l.problem.T, B = l.problem.B, D = l.problem.S, H = l.problem.H;
  const ScalarType compute = l.compute;
  Tensor y = empty({T, B, D * H}, compute), hn = empty({D, B, H}, compute);
  Tensor cs = l.lstm() && (save || states) ? empty({T, B, D * H}, compute) : empty({0}, compute);
  Tensor cn = l.lstm() ? empty({D, B, H}, compute) : empty({0}, compute), kept = empty({0}, compute);
  const Tensor input = rows_of(x, compute);
  const OptionalTensor h = dense(h0, compute), c = dense(c0, compute);
  const std::vector<Tensor> w = l.dense_weights(weights);
  const auto run = [&](auto zero) {
    using R = decltype(zero);
    const Kernels<R>& k = kernels<R>();
    const auto of_directions = by_direction<const R>(w, l.per_direction);
    if (save && cell_kept(int(cell))) kept = pooled(k.kept_size(l.problem), compute);
    ForwardCall<R> f{};
    f.problem = l.problem;
    f.rows = l.rows;
    f.x = data<const R>(input), f.x_t = input.stride(0), f.x_b = input.stride(1);
    f.weights = of_directions.data();
    f.h0 = data<const R>(h), f.c0 = data<const R>(c);
    f.y = outputs<R>(y, H), f.cs = outputs<R>(cs, H);
    if (kept.numel()) f.kept = k.kept_view(l.problem, data<R>(kept));
    f.hn = data<R>(hn), f.cn = data<R>(cn);
    run_call<R>(
        f, [&](const Machine& m) { return plan_forward(f.problem, l.gates(), sizeof(R), m); },
        [&](const Plan& plan) { return k.forward_scratch(f.problem, plan); },
        [&](int thread) { k.forward(f, thread); });
  };
  if (B) run_in(compute, run);
  return {as_type(y, l.type), as_type(hn, l.type), as_type(cs, l.type), as_type(cn, l.type), kept};
}

std::vector<Tensor> layer_backward(const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcs,
                                   const OptionalTensor& dcn, const Tensor& x, const OptionalTensor& h0,
                                   const OptionalTensor& c0, const std::vector<Tensor>& weights, const Tensor& y,
                                   const Tensor& cs, const Tensor& kept, const OptionalTensor& lengths,
                                   const OptionalTensor& reset, int64_t cell, bool bias, int64_t wanted) {
  const LayerProblem l(x, h0, c0, weights, lengths, reset, cell, bias);
  const int64_t T = l.problem.T, B = l.problem.B, D = l.problem.S, H = l.problem.H, I = l.problem.I;
  const ScalarType compute = l.compute, type = l.type;
  check_shape("y", y, {T, B, D * H});
  if (l.lstm()) check_shape("cs", cs, {T, B, D * H});
  check_gradient("dy", dy, {T, B, D * H}, type);
  check_gradient("dhn", dhn, {D, B, H}, type);
  check_gradient("dcs", dcs, {T, B, D * H}, type);
  check_gradient("dcn", dcn, {D, B, H}, type);
  STD_TORCH_CHECK(kept.scalar_type() == compute && kept.is_contiguous(),
                  "fusedrnn: kept: expected what layer(save=True) returned");
  STD_TORCH_CHECK(y.scalar_type() == type, "fusedrnn: y: expected the dtype of the other tensors");
  const bool want_x = wanted & 1, want_states = wanted & 2, want_weights = wanted & 4;
  Tensor dx = want_x ? empty({T, B, I}, compute) : empty({0}, compute);
  Tensor dh0 = want_states ? empty({D, B, H}, compute) : empty({0}, compute);
  Tensor dc0 = want_states && l.lstm() ? empty({D, B, H}, compute) : empty({0}, compute);
  std::vector<Tensor> dweights;
  for (const Tensor& w : weights)
    dweights.push_back(!want_weights  ? empty({0}, compute)
                       : w.dim() == 2 ? empty({w.size(0), w.size(1)}, compute)
                                      : empty({w.size(0)}, compute));
  const Tensor input = rows_of(x, compute), output = rows_of(y, compute), cells = l.lstm() ? rows_of(cs, compute) : cs;
  const OptionalTensor dy_ = rows_of(dy, compute), dcs_ = rows_of(dcs, compute), dhn_ = dense(dhn, compute),
                       dcn_ = dense(dcn, compute);
  const OptionalTensor h = dense(h0, compute), c = dense(c0, compute);
  const std::vector<Tensor> w = l.dense_weights(weights);
  const auto run = [&](auto zero) {
    using R = decltype(zero);
    const Kernels<R>& k = kernels<R>();
    STD_TORCH_CHECK(kept.numel() == k.kept_size(l.problem), "fusedrnn: kept: expected what layer(save=True) returned");
    const auto of_directions = by_direction<const R>(w, l.per_direction);
    const auto gradients = by_direction<R>(dweights, l.per_direction);
    BackwardCall<R> f{};
    f.problem = l.problem;
    f.rows = l.rows;
    f.x = data<const R>(input), f.x_t = input.stride(0), f.x_b = input.stride(1);
    f.weights = of_directions.data();
    f.h0 = data<const R>(h), f.c0 = data<const R>(c);
    f.y = outputs<const R>(output, H), f.cs = outputs<const R>(cells, H);
    if (kept.numel()) {
      const Kept<R> view = k.kept_view(l.problem, const_cast<R*>(data<const R>(kept)));
      f.kept = {view.base, view.t, view.b, view.s, view.vector, view.value, view.padded};
    }
    f.dy = outputs<const R>(dy_, H), f.dcs = outputs<const R>(dcs_, H);
    f.dhn = data<const R>(dhn_), f.dcn = data<const R>(dcn_);
    if (want_x) f.dx = data<R>(dx), f.dx_t = dx.stride(0), f.dx_b = dx.stride(1);
    if (want_weights) f.dweights = gradients.data();
    f.dh0 = data<R>(dh0), f.dc0 = data<R>(dc0);
    run_call<R>(
        f, [&](const Machine& m) { return plan_backward(f.problem, l.gates(), sizeof(R), m); },
        [&](const Plan& plan) { return k.backward_scratch(f.problem, plan, want_x, want_weights); },
        [&](int thread) { k.backward(f, thread); });
  };
  if (B) {
    compute == ScalarType::Double ? run(0.) : run(0.f);
  } else {
    for (Tensor& dw : dweights) torch::stable::zero_(dw);
  }
  std::vector<Tensor> found{as_type(dx, type), as_type(dh0, type), as_type(dc0, type)};
  for (const Tensor& dw : dweights) found.push_back(as_type(dw, type));
  return found;
}
}  // namespace fusedrnn::cpu
