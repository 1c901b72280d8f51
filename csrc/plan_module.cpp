// The planners as typed Python values, for tests and for whoever wants to know how a call is run: the CPU's here, the
// GPU's in plan_cuda.cpp. Only these two need Python's or pybind11's headers; torch is in neither. fusedrnn/_plan.pyi is
// their typed face.
#include "plan_module.h"

#include <pybind11/pybind11.h>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/plan.h"

namespace py = pybind11;
namespace {
using fusedrnn::at_least;
using fusedrnn::Problem;
using fusedrnn::cpu::Machine;
using fusedrnn::cpu::Plan;
using fusedrnn::cpu::Split;

int gates_of(const Problem& shape) {
  switch (shape.cell) {
    case fusedrnn::kGru:
      return fusedrnn::Gru::kGates;
    case fusedrnn::kLstm:
      return fusedrnn::Lstm::kGates;
    default:
      return fusedrnn::Rnn<false>::kGates;
  }
}

Problem make_shape(fusedrnn::CellKind cell, int64_t T, int64_t B, int64_t H, int64_t I, int64_t S, int directions) {
  at_least("T", T, 1), at_least("B", B, 0), at_least("H", H, 1), at_least("I", I, 0), at_least("S", S, 1);
  at_least("directions", directions, 1);
  return {cell, directions, T, B, S, H, I};
}

Machine make_machine(int threads, int64_t l2_bytes, int vector_bytes, int registers, Split split) {
  at_least("threads", threads, 1), at_least("l2_bytes", l2_bytes, 1), at_least("vector_bytes", vector_bytes, 16);
  at_least("registers", registers, 16);
  return {threads, l2_bytes, vector_bytes, registers, split};
}

using Planner = Plan (*)(const Problem&, int gates, int element_bytes, const Machine&);
template <Planner planner>
Plan plan(const Problem& shape, const Machine& machine, int element_bytes) {
  if (element_bytes != 2 && element_bytes != 4 && element_bytes != 8)
    throw py::value_error("element_bytes: expected 2 (bfloat16 by AMX, forward; else it runs in float), 4 or 8, got " +
                          std::to_string(element_bytes));
  return planner(shape, gates_of(shape), element_bytes, machine);
}
}  // namespace

PYBIND11_MODULE(_plan, m) {
  py::enum_<fusedrnn::CellKind>(m, "Cell")
      .value("gru", fusedrnn::kGru)
      .value("lstm", fusedrnn::kLstm)
      .value("rnn_tanh", fusedrnn::kRnnTanh)
      .value("rnn_relu", fusedrnn::kRnnRelu);
  py::enum_<Split>(m, "Split")
      .value("automatic", Split::automatic)
      .value("batch", Split::batch)
      .value("columns", Split::columns);
  py::class_<Problem>(m, "Shape")
      .def(py::init(&make_shape), py::kw_only(), py::arg("cell"), py::arg("T"), py::arg("B"), py::arg("H"),
           py::arg("I") = 0, py::arg("S") = 1, py::arg("directions") = 1)
      .def_property_readonly("cell", [](const Problem& shape) { return fusedrnn::CellKind(shape.cell); })
      .def_readonly("T", &Problem::T)
      .def_readonly("B", &Problem::B)
      .def_readonly("H", &Problem::H)
      .def_readonly("I", &Problem::I)
      .def_readonly("S", &Problem::S)
      .def_readonly("directions", &Problem::directions);
  py::class_<Machine>(m, "Machine")
      .def(py::init(&make_machine), py::kw_only(), py::arg("threads"), py::arg("l2_bytes"), py::arg("vector_bytes"),
           py::arg("registers"), py::arg("split") = Split::automatic)
      .def_readonly("threads", &Machine::threads)
      .def_readonly("l2_bytes", &Machine::l2_bytes)
      .def_readonly("vector_bytes", &Machine::vector_bytes)
      .def_readonly("registers", &Machine::registers)
      .def_readonly("split", &Machine::split);
  py::class_<Plan>(m, "Plan")
      .def_readonly("streams", &Plan::streams)
      .def_readonly("batches", &Plan::batches)
      .def_readonly("columns", &Plan::columns)
      .def_readonly("chunk", &Plan::chunk)
      .def_readonly("lstm_cols", &Plan::lstm_cols)
      .def_readonly("in_place", &Plan::in_place)
      .def_property_readonly("threads", &Plan::threads);
  m.def("plan_forward", &plan<fusedrnn::cpu::plan_forward>, py::arg("shape"), py::arg("machine"), py::kw_only(),
        py::arg("element_bytes"));
  m.def("plan_backward", &plan<fusedrnn::cpu::plan_backward>, py::arg("shape"), py::arg("machine"), py::kw_only(),
        py::arg("element_bytes"));
  fusedrnn::add_cuda_planner(m);
}
