// The CUDA kernels of the ops in csrc/ops.cpp, on torch's stable ABI: checks, output tensors, plan, launch. Compiled by
// g++. With FUSEDRNN_HOST_DEVICE it registers the same ops as "fusedrnn_host" for CPU tensors, over the kernels that
// csrc/host_device runs on the CPU: what the tests call.
#include <algorithm>
#include <stdexcept>

#include "check.h"
#include "cuda/matmul.h"
#include "cuda/torch_device.h"
#include "schemas.h"
#if defined(FUSEDRNN_HOST_DEVICE)
#include "host_device/machine.h"
#endif

namespace fusedrnn::cuda {
namespace {
// The argument `route` of the ops: the regime in the lower bits (0: as planned), and whether TF32 products are allowed.
constexpr int64_t kRegimeBits = 7, kAllowTf32 = 8;

void check_type(ScalarType type) {
  STD_TORCH_CHECK(type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float ||
                      type == ScalarType::Double,
                  "fusedrnn: the CUDA kernels take float16, bfloat16, float32 and float64; convert the tensors, or use "
                  "backend=\"reference\"");
}
Precision precision_of(ScalarType type, int64_t route) {
  switch (type) {
    case ScalarType::Half:
      return Precision::fp16;
    case ScalarType::BFloat16:
      return Precision::bf16;
    case ScalarType::Double:
      return Precision::fp64;
    default:
      return route & kAllowTf32 ? Precision::tf32 : Precision::fp32;
  }
}

// Contiguous and aligned to 16 bytes, a copy only where the caller's tensor is neither.
Tensor whole(const Tensor& t) {
  const Tensor dense = t.is_contiguous() ? t : torch::stable::contiguous(t);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : torch::stable::clone(dense);
}
OptionalTensor whole(const OptionalTensor& t) {  // autograd passes empty tensors for absent gradients
  return t && t->dim() > 1 && t->numel() ? OptionalTensor(whole(*t)) : std::nullopt;
}
OptionalTensor whole_key(const OptionalTensor& t) { return t ? OptionalTensor(whole(*t)) : std::nullopt; }
const void* pointer(const OptionalTensor& t) { return t && t->numel() ? t->const_data_ptr() : nullptr; }
void* pointer(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

void check_here(const Tensor& like, std::initializer_list<std::pair<const char*, const OptionalTensor*>> others) {
  for (const auto& [name, other] : others)
    STD_TORCH_CHECK(!*other || (*other)->device() == like.device(), "fusedrnn: ", name,
                    ": expected a tensor on the device of the others");
}

// Rows that lie packed: [N, 1, S, ...] in place of [T, B, S, ...], step t from row offsets[t] on. No more than these
// two tensors say how many steps and rows there are.
struct Packed {
  const int64_t* offsets = nullptr;
  int64_t T = 0, B = -1;

  Packed(const OptionalTensor& offsets_, const OptionalTensor& lengths, const OptionalTensor& reset) {
    if (!offsets_) return;
    STD_TORCH_CHECK(lengths && lengths->dim() == 2 && offsets_->dim() == 1 && offsets_->is_contiguous() &&
                        offsets_->scalar_type() == ScalarType::Long,
                    "fusedrnn: offsets: expected int64 [T], contiguous, and lengths [S, B] beside it");
    STD_TORCH_CHECK(!reset, "fusedrnn: offsets: packed rows take no resets");
    offsets = data<const int64_t>(*offsets_), T = offsets_->size(0), B = lengths->size(1);
    STD_TORCH_CHECK(T > 0 && B > 0, "fusedrnn: offsets: expected at least one step and one row, got ", T, " and ", B);
  }
  // What they say is on the device and is trusted: row b of step t is offsets[t] + b, below N, for t < lengths[b].
  void check(const Sizes& n) const {
    STD_TORCH_CHECK(!offsets || (n.B == 1 && B <= n.T && n.T <= T * B),
                    "fusedrnn: offsets: expected sequences [N, 1, S, ...] with N rows of ", T, " steps and ", B,
                    " rows a step at most, got ", n.T, " and ", n.B);
  }
};

struct Table {
  const Instance* rows;
  size_t count;
  int first;  // index of the first of these rows
};
#if defined(FUSEDRNN_HOST_DEVICE)
int64_t only_row = -1;  // a test tries the kernels one by one

void only(int64_t row) { only_row = row; }
// Of the launches to come: the order of warps and of late stores.
void seed(int64_t value) { host_device::seed() = unsigned(value); }
std::vector<int64_t> rows() {  // the fields of every instance, one after the other
  size_t count = 0;
  const Instance* const all = instances(&count);
  std::vector<int64_t> fields;
  for (const Instance* i = all; i < all + count; i++)
    for (const int field : {i->cell, int(i->precision), int(i->pass), int(i->exchange), int(i->masked), i->H, i->units,
                            i->rows, i->chains, i->k_split, i->k_registers, i->cluster})
      fields.push_back(field);
  return fields;
}
#endif
Table instance_table() {
  size_t count = 0;
  const Instance* const all = instances(&count);
#if defined(FUSEDRNN_HOST_DEVICE)
  if (only_row >= 0) return {all + only_row, 1, int(only_row)};
#endif
  return {all, count, 0};
}

void run_planned(const Call& call, const NormTensors* norms, const Tensor& like, int64_t route) {
  const Request request{call.problem,
                        call.pass,
                        call.precision,
                        call.rows.masked() || call.offsets != nullptr,
                        call.dgates || call.dcs,
                        call.noise.any(),
                        norms != nullptr,
                        call.reset_h != nullptr,
                        Regime(route & kRegimeBits)};
  Plan planned;
  const Table table = instance_table();
  try {
    planned = plan(request, device_of(like.get_device_index()), table.rows, table.count);
    if (planned.instance >= 0) planned.instance += table.first;
  } catch (const std::invalid_argument& error) {
    STD_TORCH_CHECK(false, "fusedrnn: ", error.what());
  }
  const size_t bytes = norms ? norm_step_scratch_bytes(call) : scratch_bytes(call, planned);
  const auto scratch = fresh(like, {int64_t(bytes)}, ScalarType::Byte);
  if (norms)
    run_norm_step(call, *norms, pointer(scratch), current_stream(like));
  else
    run(call, planned, pointer(scratch), current_stream(like));
}

void check_size(const Sizes& n, int64_t route) {
  STD_TORCH_CHECK(n.H % 8 == 0, "fusedrnn: the CUDA kernels take a multiple of 8 hidden units, got ", n.H,
                  "; fusedrnn's layers pad the weights");
  STD_TORCH_CHECK(n.T <= INT32_MAX / std::max<int64_t>(n.B, 1), "fusedrnn: T * B: expected less than 2^31 rows, got ",
                  n.T, " * ", n.B);
  STD_TORCH_CHECK(route >= 0 && (route & kRegimeBits) <= int64_t(Regime::grid) && route <= kRegimeBits + kAllowTf32,
                  "fusedrnn: route: expected a regime from 0 to 4, plus 8 to allow TF32, got ", route);
}

// What `scan` has not: where a reset goes back to; gains and shifts of layer normalisation. Each may be absent.
struct More {
  OptionalTensor reset_h, reset_c, gain_hh, gain_c, shift_c;

  bool starts() const { return reset_h.has_value(); }
  bool normed() const { return gain_hh.has_value(); }
  void check(const Sizes& n, int64_t cell, const Tensor& like) const {
    check_resets(reset_h, reset_c, n, cell, like.scalar_type());
    check_norms(gain_hh, gain_c, shift_c, n, cell, like.scalar_type());
    check_here(like, {{"reset_h", &reset_h},
                      {"reset_c", &reset_c},
                      {"gain_hh", &gain_hh},
                      {"gain_c", &gain_c},
                      {"shift_c", &shift_c}});
  }
  More as_read() const {  // by the kernels
    return {whole(reset_h), whole(reset_c), whole(gain_hh), whole(gain_c), whole(shift_c)};
  }
  NormTensors give(Call& call) const {
    call.reset_h = pointer(reset_h), call.reset_c = pointer(reset_c);
    NormTensors norms{};
    norms.gain = pointer(gain_hh), norms.gain_c = pointer(gain_c), norms.shift_c = pointer(shift_c);
    return norms;
  }
};
Tensor fresh_if(bool wanted, const Tensor& like, std::initializer_list<int64_t> sizes) {
  return wanted ? fresh(like, sizes) : fresh(like, {0});
}

using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The ops `scan` and `norm_scan`.
Six forward(const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
            const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
            const OptionalTensor& offsets, const OptionalTensor& mask_key, const std::vector<double>& rates,
            int64_t cell, int64_t directions, bool save, const More& more, int64_t route) {
  const Noise noise = check_rates(mask_key, rates, cell);
  check_type(gates_x.scalar_type());
  const Packed packed(offsets, lengths, reset);
  const Sizes n = check_scan(gates_x, h0, c0, weight_hh, bias_hh, cell, directions, packed.B);
  packed.check(n);
  const int64_t steps = packed.offsets ? packed.T : n.T, batch = packed.offsets ? packed.B : n.B;
  check_size(n, route);
  check_here(gates_x, {{"h0", &h0},
                       {"c0", &c0},
                       {"bias_hh", &bias_hh},
                       {"lengths", &lengths},
                       {"reset", &reset},
                       {"offsets", &offsets},
                       {"mask_key", &mask_key}});
  STD_TORCH_CHECK(weight_hh.device() == gates_x.device(),
                  "fusedrnn: weight_hh: expected a tensor on the device of the others");
  more.check(n, cell, gates_x);
  const Guard guard(gates_x);
  const bool lstm = cell == kLstm;
  const Tensor y = fresh(gates_x, {n.T, n.B, n.S, n.H}), hn = fresh(gates_x, {n.S, batch, n.H}),
               gates = fresh_if(save && n.Z, gates_x, {n.T, n.B, n.S, n.Z * n.H}),
               cs = fresh_if(lstm, gates_x, {n.T, n.B, n.S, n.H}), cn = fresh_if(lstm, gates_x, {n.S, batch, n.H}),
               products = fresh_if(save && more.normed(), gates_x, {n.T, n.B, n.S, n.G * n.H});
  const Tensor projections = whole(gates_x), w = whole(weight_hh);
  const More given = more.as_read();
  const OptionalTensor bias = whole(bias_hh), h = whole(h0), c = whole(c0), key = whole_key(mask_key);
  Call call{};
  call.pass = Pass::forward;
  call.precision = precision_of(gates_x.scalar_type(), route);
  call.problem = {int(cell), int(directions), steps, batch, n.S, n.H, 0};
  call.rows = check_rows(lengths, reset, steps, batch, n.S, true);
  call.offsets = packed.offsets;
  call.noise = noise, call.key = data<const int64_t>(key);
  call.w = pointer(w), call.bias = pointer(bias), call.h0 = pointer(h), call.c0 = pointer(c);
  call.gates_x = pointer(projections);
  call.y = pointer(y), call.cs = pointer(cs), call.gates = pointer(gates);
  call.hn = pointer(hn), call.cn = pointer(cn);
  NormTensors norms = given.give(call);
  norms.products = pointer(products);
  if (batch) run_planned(call, more.normed() ? &norms : nullptr, gates_x, route);
  return {y, hn, gates, cs, cn, products};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> scan(
    const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
    const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
    const OptionalTensor& reset_h, const OptionalTensor& reset_c, const OptionalTensor& offsets,
    const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t cell, int64_t directions, bool save,
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t route) {
  check_reserved(reset_h, reset_c, std::nullopt);
  const auto [y, hn, gates, cs, cn, products] = forward(gates_x, h0, c0, weight_hh, bias_hh, lengths, reset, offsets,
                                                        mask_key, rates, cell, directions, save, {}, route);
  return {y, hn, gates, cs, cn};
}

Six norm_scan(const Tensor& gates_x, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& weight_hh,
              const OptionalTensor& bias_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
              const OptionalTensor& reset_h, const OptionalTensor& reset_c, const OptionalTensor& gain_hh,
              const OptionalTensor& gain_c, const OptionalTensor& shift_c, const OptionalTensor& mask_key,
              const std::vector<double>& rates, int64_t cell, int64_t directions, bool save, int64_t route) {
  return forward(gates_x, h0, c0, weight_hh, bias_hh, lengths, reset, std::nullopt, mask_key, rates, cell, directions,
                 save, {reset_h, reset_c, gain_hh, gain_c, shift_c}, route);
}

// The ops `scan_backward` and `norm_scan_backward`. products: of layer normalisation.
Seven backward(const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dgates,
               const OptionalTensor& dcs, const OptionalTensor& dcn, const Tensor& gates, const Tensor& y,
               const OptionalTensor& h0, const OptionalTensor& cs, const OptionalTensor& c0, const Tensor& weight_hh,
               const OptionalTensor& products, const OptionalTensor& lengths, const OptionalTensor& reset,
               const More& more, int64_t cell, int64_t directions, const OptionalTensor& offsets,
               const OptionalTensor& mask_key, const std::vector<double>& rates, int64_t route) {
  const Noise noise = check_rates(mask_key, rates, cell);
  check_type(y.scalar_type());
  const Packed packed(offsets, lengths, reset);
  const Sizes n =
      check_scan_backward(dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight_hh, cell, directions, packed.B);
  packed.check(n);
  check_mean(noise, n.Z > 0);
  const int64_t steps = packed.offsets ? packed.T : n.T, batch = packed.offsets ? packed.B : n.B;
  check_size(n, route);
  check_here(y, {{"dy", &dy},
                 {"dhn", &dhn},
                 {"dgates", &dgates},
                 {"dcs", &dcs},
                 {"dcn", &dcn},
                 {"h0", &h0},
                 {"cs", &cs},
                 {"c0", &c0},
                 {"lengths", &lengths},
                 {"reset", &reset},
                 {"offsets", &offsets},
                 {"mask_key", &mask_key}});
  STD_TORCH_CHECK(weight_hh.device() == y.device() && gates.device() == y.device(),
                  "fusedrnn: weight_hh, gates: expected tensors on the device of the others");
  more.check(n, cell, y);
  const bool lstm = cell == kLstm, normed = more.normed(), starts = more.starts();
  if (normed) {
    check_like("products", products, {n.T, n.B, n.S, n.G * n.H}, y.scalar_type());
    check_here(y, {{"products", &products}});
  }
  const Guard guard(y);
  const Tensor dgates_x = fresh(y, {n.T, n.B, n.S, n.G * n.H}), dh0 = fresh(y, {n.S, batch, n.H}),
               dc0 = fresh_if(lstm, y, {n.S, batch, n.H}),
               dq = fresh_if(cell == kGru || (lstm && normed), y, {n.T, n.B, n.S, n.H}),
               dproducts = fresh_if(normed, y, {n.T, n.B, n.S, n.G * n.H}),
               dreset_h = fresh_if(starts, y, {n.S, batch, n.H}),
               dreset_c = fresh_if(starts && lstm, y, {n.S, batch, n.H});
  const Tensor kept = whole(gates), given_y = whole(y), w = whole(weight_hh);
  const OptionalTensor products_ = whole(products);
  const More given = more.as_read();
  const OptionalTensor dy_ = whole(dy), dhn_ = whole(dhn), dgates_ = n.Z ? whole(dgates) : std::nullopt,
                       dcs_ = lstm ? whole(dcs) : std::nullopt, dcn_ = lstm ? whole(dcn) : std::nullopt, h = whole(h0),
                       cs_ = lstm ? whole(cs) : std::nullopt, c = lstm ? whole(c0) : std::nullopt,
                       key = whole_key(mask_key);
  Call call{};
  call.pass = Pass::backward;
  call.precision = precision_of(y.scalar_type(), route);
  call.problem = {int(cell), int(directions), steps, batch, n.S, n.H, 0};
  call.rows = check_rows(lengths, reset, steps, batch, n.S, true);
  call.offsets = packed.offsets;
  call.noise = noise, call.key = data<const int64_t>(key);
  call.w = pointer(w), call.h0 = pointer(h), call.c0 = pointer(c);
  call.y = pointer(given_y), call.cs = const_cast<void*>(pointer(cs_)), call.gates = pointer(kept);
  call.dy = pointer(dy_), call.dgates = pointer(dgates_), call.dcs = pointer(dcs_);
  call.dhn = pointer(dhn_), call.dcn = pointer(dcn_);
  call.dgates_x = pointer(dgates_x), call.dq = pointer(dq);
  call.dh0 = pointer(dh0), call.dc0 = pointer(dc0);
  call.dreset_h = pointer(dreset_h), call.dreset_c = pointer(dreset_c);
  NormTensors norms = given.give(call);
  norms.products = const_cast<void*>(pointer(products_)), norms.dproducts = pointer(dproducts);
  if (batch) run_planned(call, normed ? &norms : nullptr, y, route);
  return {dgates_x, dh0, dc0, dq, dproducts, dreset_h, dreset_c};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scan_backward(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dgates, const OptionalTensor& dcs,
    const OptionalTensor& dcn, const Tensor& gates, const Tensor& y, const OptionalTensor& h0, const OptionalTensor& cs,
    const OptionalTensor& c0, const Tensor& weight_hh, const OptionalTensor& lengths, const OptionalTensor& reset,
    int64_t cell, int64_t directions, int64_t route, const OptionalTensor& offsets, const OptionalTensor& mask_key,
    const std::vector<double>& rates) {
  const auto [dgates_x, dh0, dc0, dq, dproducts, dreset_h, dreset_c] =
      backward(dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight_hh, std::nullopt, lengths, reset, {}, cell,
               directions, offsets, mask_key, rates, route);
  return {dgates_x, dh0, dc0, dq};
}

Seven norm_scan_backward(const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcs,
                         const OptionalTensor& dcn, const Tensor& gates, const Tensor& y, const OptionalTensor& h0,
                         const OptionalTensor& cs, const OptionalTensor& c0, const Tensor& weight_hh,
                         const Tensor& products, const OptionalTensor& lengths, const OptionalTensor& reset,
                         const OptionalTensor& reset_h, const OptionalTensor& reset_c, const OptionalTensor& gain_hh,
                         const OptionalTensor& gain_c, const OptionalTensor& shift_c, const OptionalTensor& mask_key,
                         const std::vector<double>& rates, int64_t cell, int64_t directions, int64_t route) {
  return backward(dy, dhn, std::nullopt, dcs, dcn, gates, y, h0, cs, c0, weight_hh, products, lengths, reset,
                  {reset_h, reset_c, gain_hh, gain_c, shift_c}, cell, directions, std::nullopt, mask_key, rates, route);
}
}  // namespace
}  // namespace fusedrnn::cuda

#if defined(FUSEDRNN_HOST_DEVICE)
STABLE_TORCH_LIBRARY(fusedrnn_host, m) {
  m.def(fusedrnn::kScanSchema);
  m.def(fusedrnn::kScanBackwardSchema);
  m.def(fusedrnn::kNormScanSchema);
  m.def(fusedrnn::kNormScanBackwardSchema);
  m.def("only(int row) -> ()");
  m.def("seed(int value) -> ()");
  m.def("rows() -> int[]");
}
STABLE_TORCH_LIBRARY_IMPL(fusedrnn_host, CompositeExplicitAutograd, m) {
  m.impl("only", TORCH_BOX(&fusedrnn::cuda::only));
  m.impl("seed", TORCH_BOX(&fusedrnn::cuda::seed));
  m.impl("rows", TORCH_BOX(&fusedrnn::cuda::rows));
}
STABLE_TORCH_LIBRARY_IMPL(fusedrnn_host, CPU, m) {
  m.impl("scan", TORCH_BOX(&fusedrnn::cuda::scan));
  m.impl("scan_backward", TORCH_BOX(&fusedrnn::cuda::scan_backward));
  m.impl("norm_scan", TORCH_BOX(&fusedrnn::cuda::norm_scan));
  m.impl("norm_scan_backward", TORCH_BOX(&fusedrnn::cuda::norm_scan_backward));
}
#else
STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("scan", TORCH_BOX(&fusedrnn::cuda::scan));
  m.impl("scan_backward", TORCH_BOX(&fusedrnn::cuda::scan_backward));
  m.impl("norm_scan", TORCH_BOX(&fusedrnn::cuda::norm_scan));
  m.impl("norm_scan_backward", TORCH_BOX(&fusedrnn::cuda::norm_scan_backward));
  m.impl("product", TORCH_BOX(&fusedrnn::cuda::product));
}
#endif
