// What the two halves of the planner's Python module share.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

namespace fusedrnn {
// The planners divide by these.
inline void at_least(const char* name, int64_t got, int64_t least) {
  if (got < least)
    throw pybind11::value_error(std::string(name) + ": expected at least " + std::to_string(least) + ", got " +
                                std::to_string(got));
}
void add_cuda_planner(pybind11::module_& m);
}  // namespace fusedrnn
