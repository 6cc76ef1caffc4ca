// What this machine and build offer.
#include <pybind11/stl.h>

#include "backend/backend.h"
#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"

namespace gptoss::bindings {

void bind_system(py::module_& module) {
  module.attr("__version__") = GPTOSS_VERSION;
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Isa isa : available_isas()) names.emplace_back(isa_name(isa));
    return names;
  });
  module.def("default_isa", [] { return std::string(isa_name(default_isa())); });
  module.def("default_num_threads", &default_num_threads);
  module.def("cpu_model_name", &cpu_model_name);
  module.def("cuda_status", &cuda_status);
}

}  // namespace gptoss::bindings
