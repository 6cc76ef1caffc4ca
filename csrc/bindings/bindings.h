// One function for each header that is bound.
#pragma once

#include <pybind11/pybind11.h>

namespace gptoss::bindings {

namespace py = pybind11;

void bind_errors(py::module_& module);
void bind_system(py::module_& module);
void bind_ops(py::module_& module);
void bind_model(py::module_& module);
void bind_session(py::module_& module);
void bind_sampler(py::module_& module);
void bind_generation(py::module_& module);

}  // namespace gptoss::bindings
