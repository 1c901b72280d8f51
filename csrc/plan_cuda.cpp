// The CUDA planner as typed Python values: which kernel runs a call on which GPU. No CUDA in it, and no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdio>
#include <string>
#include <vector>

#include "cuda/instances.h"
#include "cuda/plan.h"
#include "plan_module.h"

namespace py = pybind11;
namespace fusedrnn {
namespace {
using cuda::Device;
using cuda::Exchange;
using cuda::Instance;
using cuda::Pass;
using cuda::Plan;
using cuda::Precision;
using cuda::Regime;

Device make_device(int major, int minor, int sms, int smem_bytes, int64_t l2_bytes, double clock_ghz, double memory_gbs,
                   bool cooperative, std::array<int, 5> max_clusters) {
  at_least("major", major, 1), at_least("minor", minor, 0), at_least("sms", sms, 1);
  at_least("smem_bytes", smem_bytes, 0), at_least("l2_bytes", l2_bytes, 0);
  if (!(clock_ghz > 0) || !(memory_gbs > 0)) throw py::value_error("clock_ghz, memory_gbs: expected above 0");
  Device device{major, minor, sms, smem_bytes, l2_bytes, clock_ghz, memory_gbs, cooperative, {}};
  for (size_t n = 0; n < max_clusters.size(); n++) {
    at_least("max_clusters", max_clusters[n], 0);
    device.max_clusters[n] = max_clusters[n];
  }
  return device;
}

// What the planner divides by, or takes for granted of a row of the table.
Instance make_instance(CellKind cell, Precision precision, Pass pass, Exchange exchange, bool masked, int H, int units,
                       int rows, int chains, int k_split, int k_registers, int cluster) {
  at_least("units", units, 16), at_least("H", H, units), at_least("rows", rows, 8), at_least("chains", chains, 1);
  at_least("k_split", k_split, 1), at_least("k_registers", k_registers, 0), at_least("cluster", cluster, 1);
  if (cluster > 16 || (cluster & (cluster - 1)))
    throw py::value_error("cluster: expected 1, 2, 4, 8 or 16, got " + std::to_string(cluster));
  return {cell, precision, pass, exchange, masked, H, units, rows, chains, k_split, k_registers, cluster};
}

const std::vector<Instance>& compiled() {
  static const std::vector<Instance> all(std::begin(cuda::kInstances), std::end(cuda::kInstances));
  return all;
}

struct NamedPlan {  // with the rows of its instance, for the text
  Plan plan;
  int rows, chains;
};

std::string line(const NamedPlan& named) {
  const Plan& p = named.plan;
  char text[160], us[24];
  std::snprintf(us, sizeof us, "%.2f us/step", p.us_per_step);
  if (p.regime == Regime::step) return std::string("time-step kernel, ") + us;
  const std::string team = p.regime == Regime::cta       ? "one CTA"
                           : p.regime == Regime::cluster ? "cluster of " + std::to_string(p.team)
                           : p.cluster > 1
                               ? "grid of " + std::to_string(p.team) + " in clusters of " + std::to_string(p.cluster)
                               : "grid of " + std::to_string(p.team);
  std::snprintf(text, sizeof text, "%s, %dx%d rows, %d group%s, %d threads, %lld KB, %s", team.c_str(), named.rows,
                named.chains, p.groups, p.groups == 1 ? "" : "s", p.threads, (long long)(p.smem_bytes + 1023) / 1024,
                us);
  return text;
}

NamedPlan plan_of(const Problem& shape, const Device& device, Pass pass, Precision precision, bool masked,
                  bool derivatives, bool noise, bool norm, bool reset_state, Regime regime,
                  const std::optional<std::vector<Instance>>& instances) {
  at_least("B", shape.B, 1);
  const std::vector<Instance>& all = instances ? *instances : compiled();
  const cuda::Request request{shape, pass, precision, masked, derivatives, noise, norm, reset_state, regime};
  const Plan plan = cuda::plan(request, device, all.data(), all.size());
  const bool persistent = plan.instance >= 0;
  return {plan, persistent ? all[plan.instance].rows : 0, persistent ? all[plan.instance].chains : 0};
}

template <auto member>
auto of_plan() {
  return [](const NamedPlan& named) { return named.plan.*member; };
}

void add_enums(py::module_& m) {
  py::enum_<Pass>(m, "Pass").value("forward", Pass::forward).value("backward", Pass::backward);
  py::enum_<Precision>(m, "Precision")
      .value("bf16", Precision::bf16)
      .value("fp16", Precision::fp16)
      .value("tf32", Precision::tf32)
      .value("fp32", Precision::fp32)
      .value("fp64", Precision::fp64);
  py::enum_<Regime>(m, "Regime")
      .value("automatic", Regime::automatic)
      .value("step", Regime::step)
      .value("cta", Regime::cta)
      .value("cluster", Regime::cluster)
      .value("grid", Regime::grid);
  py::enum_<Exchange>(m, "Exchange")
      .value("cta", Exchange::cta)
      .value("cluster", Exchange::cluster)
      .value("scatter", Exchange::scatter)
      .value("grid", Exchange::grid)
      .value("split", Exchange::split);
}
}  // namespace

void add_cuda_planner(py::module_& m) {
  add_enums(m);
  py::class_<Device>(m, "Device")
      .def(py::init(&make_device), py::kw_only(), py::arg("major"), py::arg("minor"), py::arg("sms"),
           py::arg("smem_bytes"), py::arg("l2_bytes"), py::arg("clock_ghz"), py::arg("memory_gbs"),
           py::arg("cooperative") = true, py::arg("max_clusters") = std::array<int, 5>{})
      .def_readonly("major", &Device::major)
      .def_readonly("minor", &Device::minor)
      .def_readonly("sms", &Device::sms)
      .def_readonly("smem_bytes", &Device::smem_bytes)
      .def_readonly("l2_bytes", &Device::l2_bytes)
      .def_readonly("clock_ghz", &Device::clock_ghz)
      .def_readonly("memory_gbs", &Device::memory_gbs)
      .def_readonly("cooperative", &Device::cooperative)
      .def_property_readonly("max_clusters", [](const Device& device) { return std::to_array(device.max_clusters); });
  py::class_<Instance>(m, "Instance")
      .def(py::init(&make_instance), py::kw_only(), py::arg("cell"), py::arg("precision"), py::arg("pass_"),
           py::arg("exchange"), py::arg("masked"), py::arg("H"), py::arg("units"), py::arg("rows") = 8,
           py::arg("chains") = 1, py::arg("k_split") = 1, py::arg("k_registers") = 99, py::arg("cluster") = 1)
      .def_property_readonly("cell", [](const Instance& i) { return CellKind(i.cell); })
      .def_readonly("precision", &Instance::precision)
      .def_readonly("pass_", &Instance::pass)
      .def_readonly("exchange", &Instance::exchange)
      .def_property_readonly("regime", [](const Instance& i) { return cuda::regime_of(i.exchange); })
      .def_readonly("masked", &Instance::masked)
      .def_readonly("H", &Instance::H)
      .def_readonly("units", &Instance::units)
      .def_readonly("rows", &Instance::rows)
      .def_readonly("chains", &Instance::chains)
      .def_readonly("k_split", &Instance::k_split)
      .def_readonly("k_registers", &Instance::k_registers)
      .def_readonly("cluster", &Instance::cluster)
      .def_property_readonly("team", &Instance::team)
      .def_property_readonly("threads", &Instance::threads)
      .def_property_readonly("smem_bytes", [](const Instance& i) { return cuda::smem_bytes(i); });
  py::class_<NamedPlan>(m, "CudaPlan")
      .def_property_readonly("regime", of_plan<&Plan::regime>())
      .def_property_readonly("instance", of_plan<&Plan::instance>())
      .def_property_readonly("groups", of_plan<&Plan::groups>())
      .def_property_readonly("team", of_plan<&Plan::team>())
      .def_property_readonly("cluster", of_plan<&Plan::cluster>())
      .def_property_readonly("threads", of_plan<&Plan::threads>())
      .def_property_readonly("smem_bytes", of_plan<&Plan::smem_bytes>())
      .def_property_readonly("wave", of_plan<&Plan::wave>())
      .def_property_readonly("us_per_step", of_plan<&Plan::us_per_step>())
      .def("__repr__", &line);
  m.def("cuda_instances", &compiled,
        "The kernels that the library is compiled with; CudaPlan.instance counts in them.");
  m.def("cuda_plan", &plan_of, py::arg("shape"), py::arg("device"), py::kw_only(), py::arg("pass_"),
        py::arg("precision"), py::arg("masked") = false, py::arg("derivatives") = false, py::arg("noise") = false,
        py::arg("norm") = false, py::arg("reset_state") = false, py::arg("regime") = Regime::automatic,
        py::arg("instances") = py::none());
}
}  // namespace fusedrnn
