// What this machine and build offer.
#include <pybind11/stl.h>

#include "backend/backend.h"
#include "base/arithmetic_peak.h"
#include "base/bandwidth.h"
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
  module.def("default_num_threads", [] { return default_num_threads(); });
  module.def("cpu_model_name", &cpu_model_name);
  module.def(
      "read_bandwidth",
      [](std::size_t num_bytes, int num_threads, int repeats, bool small_pages) {
        return measure_read_bandwidth(num_bytes, num_threads, repeats,
                                      small_pages ? PageSize::kSmall : PageSize::kHuge);
      },
      py::arg("num_bytes"), py::arg("num_threads") = 0, py::arg("repeats") = 3, py::kw_only(),
      py::arg("small_pages") = false, py::call_guard<py::gil_scoped_release>());
  module.def(
      "arithmetic_peaks",
      [](int num_threads, double seconds) {
        std::vector<std::pair<std::string, double>> peaks;
        {
          const py::gil_scoped_release release;
          peaks = measure_arithmetic_peaks(num_threads, seconds);
        }
        py::dict result;  // in the order measured
        for (const auto& [name, operations] : peaks) result[py::str(name)] = operations;
        return result;
      },
      py::arg("num_threads") = 0, py::arg("seconds") = 0.05);
  module.def("cuda_status", &cuda_status);
  module.def("cuda_device_text", &cuda_device_text);
}

}  // namespace gptoss::bindings
