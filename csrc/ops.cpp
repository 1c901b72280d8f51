// Schemas of the ops and their CPU registration, on torch's stable ABI: one binary for every torch from
// TORCH_TARGET_VERSION on. fusedrnn/ops.py holds the same schemas for where this library is missing;
// tests/test_kernel.py compares the two texts.
#include "cpu/ops.h"

#include "cpu/kernel.h"
#include "schemas.h"

namespace {
std::string isa() { return fusedrnn::cpu::instruction_set().name; }
}  // namespace

STABLE_TORCH_LIBRARY(fusedrnn, m) {
  m.def(fusedrnn::kScanSchema);
  m.def(fusedrnn::kScanBackwardSchema);
  m.def(
      "layer(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, Tensor? reset, int cell, bool bias, "
      "bool save, bool states)"
      " -> (Tensor y, Tensor hn, Tensor cs, Tensor cn, Tensor kept)");
  m.def(
      "layer_backward(Tensor? dy, Tensor? dhn, Tensor? dcs, Tensor? dcn, Tensor x, Tensor? h0, Tensor? c0, Tensor[] "
      "weights, Tensor y, Tensor cs,"
      " Tensor kept, Tensor? lengths, Tensor? reset, int cell, bool bias, int wanted) -> Tensor[]");
  m.def("product(Tensor a, Tensor b, bool tf32) -> Tensor");
  m.def(fusedrnn::kNormScanSchema);
  m.def(fusedrnn::kNormScanBackwardSchema);
  m.def("pointwise(Tensor x, bool tanh) -> Tensor");
  m.def("isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("scan", TORCH_BOX(&fusedrnn::cpu::scan));
  m.impl("scan_backward", TORCH_BOX(&fusedrnn::cpu::scan_backward));
  m.impl("layer", TORCH_BOX(&fusedrnn::cpu::layer));
  m.impl("layer_backward", TORCH_BOX(&fusedrnn::cpu::layer_backward));
  m.impl("norm_scan", TORCH_BOX(&fusedrnn::cpu::norm_scan));
  m.impl("norm_scan_backward", TORCH_BOX(&fusedrnn::cpu::norm_scan_backward));
  m.impl("pointwise", TORCH_BOX(&fusedrnn::cpu::pointwise));
}
STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }
