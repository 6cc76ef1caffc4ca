// Generation: sampling options in, one token at a time out.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/cancel.h"
#include "bindings/tokens.h"
#include "engine/generate.h"

namespace gptoss::bindings {
namespace {

SamplingOptions sampling_of(const py::object& sampling, std::int64_t num_logprobs) {
  const auto real = [&](const char* name) { return sampling.attr(name).cast<double>(); };
  SamplingOptions options;
  options.temperature = real("temperature");
  options.top_k = sampling.attr("top_k").cast<std::int64_t>();
  options.top_p = real("top_p");
  options.min_p = real("min_p");
  options.repetition_penalty = real("repetition_penalty");
  options.presence_penalty = real("presence_penalty");
  options.frequency_penalty = real("frequency_penalty");
  for (const auto& [token, bias] :
       sampling.attr("logit_bias").cast<std::map<std::int32_t, float>>()) {
    options.logit_bias.emplace_back(token, bias);
  }
  if (const py::object seed = sampling.attr("seed"); !seed.is_none()) {
    // Any Python integer is a seed; only its low 64 bits count.
    options.seed =
        py::int_(seed.attr("__and__")(py::int_(~std::uint64_t{0}))).cast<std::uint64_t>();
  }
  options.num_logprobs = num_logprobs;
  return options;
}

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

// None at the end; a plain id, or (id, logprob, [(id, logprob), ...]) where logprobs were asked
// for.
py::object next_token(Generation& generation, const std::optional<py::array>& mask) {
  TokenMask token_mask;
  if (mask) {
    const std::uint8_t* data = [&] {
      if (mask->dtype().kind() == 'b' && mask->ndim() == 1) {
        return static_cast<const std::uint8_t*>(mask->data());
      }
      return checked_data<const std::uint8_t>(*mask, "generate", "mask", 1,
                                              "[vocab] bool, or packed bits as uint8");
    }();
    GPTOSS_REQUIRE(InvalidArgument, mask->size() <= 1 || mask->strides(0) == 1,
                   "[generate] mask: expected a contiguous array");
    token_mask.format = mask->dtype().kind() == 'b' ? MaskFormat::kBytes : MaskFormat::kBits;
    token_mask.data = {data, static_cast<std::size_t>(mask->size())};
  }
  const std::optional<SampledToken> token = [&] {
    const py::gil_scoped_release release;
    return generation.next(mask ? &token_mask : nullptr, signal_check());
  }();
  if (!token) return py::none();
  if (!token->logprob) return py::int_(token->token);
  py::list top;
  for (const TokenLogprob& entry : token->top) {
    top.append(py::make_tuple(entry.token, entry.logprob));
  }
  return py::make_tuple(token->token, *token->logprob, top);
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
}

}  // namespace gptoss::bindings
