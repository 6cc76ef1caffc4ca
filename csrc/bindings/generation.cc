// Generation: sampling options in, one token at a time out.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/cancel.h"
#include "bindings/sampling.h"
#include "bindings/tokens.h"
#include "engine/generate.h"

namespace gptoss::bindings {
namespace {

std::unique_ptr<Generation> make_generation(std::shared_ptr<Session> session,
                                            const py::object& tokens, const py::object& sampling,
                                            std::optional<std::int64_t> max_new_tokens,
                                            const py::object& stop_tokens,
                                            std::int64_t num_logprobs) {
  GenerateOptions options;
  options.sampling = sampling_of(sampling, num_logprobs);
  options.stop_tokens = tokens_of(stop_tokens, "generate");
  options.max_new_tokens = max_new_tokens;
  return std::make_unique<Generation>(std::move(session), tokens_of(tokens, "generate"),
                                      std::move(options));
}

// None at the end.
py::object next_token(Generation& generation, const std::optional<py::array>& mask) {
  const std::optional<TokenMask> token_mask = mask_of(mask, "generate");
  const std::optional<SampledToken> token = [&] {
    const py::gil_scoped_release release;
    return generation.next(token_mask ? &*token_mask : nullptr, signal_check());
  }();
  return token ? token_object(*token) : py::none();
}

// One id for each, None for those at their end.
py::list next_tokens(const py::list& generations) {
  std::vector<Generation*> all;
  for (const py::handle generation : generations) all.push_back(generation.cast<Generation*>());
  for (const Generation* generation : all) {
    GPTOSS_REQUIRE(InvalidArgument, generation != nullptr,
                   "[generate] expected generations, got None");
  }
  const std::vector<std::optional<std::int32_t>> tokens = [&] {
    const py::gil_scoped_release release;
    return Generation::next_of_all(all, signal_check());
  }();
  py::list result;
  for (const std::optional<std::int32_t>& token : tokens) {
    result.append(token ? py::object(py::int_(*token)) : py::object(py::none()));
  }
  return result;
}

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kClosed:
      return "closed";
    case FinishReason::kNone:
      break;
  }
  return nullptr;
}

}  // namespace

void bind_generation(py::module_& module) {
  py::class_<Generation>(module, "Generation")
      .def(py::init(&make_generation), py::arg("session"), py::arg("tokens"), py::arg("sampling"),
           py::arg("max_new_tokens"), py::arg("stop_tokens"), py::arg("num_logprobs"))
      .def("next", &next_token, py::arg("mask") = py::none())
      .def("close", &Generation::close, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("num_generated", &Generation::num_generated)
      .def_property_readonly("seed", &Generation::seed)
      .def_property_readonly("finish_reason", [](const Generation& generation) {
        const char* name = finish_reason_name(generation.finish_reason());
        return name == nullptr ? py::object(py::none()) : py::object(py::str(name));
      });
  module.def("next_tokens", &next_tokens, py::arg("generations"));
}

}  // namespace gptoss::bindings
