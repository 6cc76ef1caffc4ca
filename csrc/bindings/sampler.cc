// The sampler on given logits, without a model: for tests against the float64 reference.
#include "engine/sampler.h"

#include "bindings/bindings.h"
#include "bindings/sampling.h"
#include "bindings/tokens.h"

namespace gptoss::bindings {
namespace {

std::unique_ptr<Sampler> make_sampler(const py::object& sampling, std::int64_t vocab_size,
                                      const py::object& prompt, const py::object& banned,
                                      std::int64_t num_logprobs) {
  const auto ids = [&](const py::object& tokens) {
    std::vector<std::int32_t> result = tokens_of(tokens, "sampler");
    for (const std::int32_t token : result) {
      GPTOSS_REQUIRE(InvalidArgument, token < vocab_size, "[sampler] expected ids in [0, ",
                     vocab_size, "), got ", token);
    }
    return result;
  };
  return std::make_unique<Sampler>(sampling_of(sampling, num_logprobs), vocab_size,
                                   std::make_shared<const std::vector<std::int32_t>>(ids(banned)),
                                   ids(prompt));
}

std::span<const float> row_of(const py::array& logits) {
  const float* data = checked_data<const float>(logits, "sample", "logits", 1, "[vocab] float32");
  GPTOSS_REQUIRE(InvalidArgument, logits.size() <= 1 || logits.strides(0) == logits.itemsize(),
                 "[sample] logits: expected a contiguous array");
  return {data, static_cast<std::size_t>(logits.size())};
}

py::object sample(Sampler& sampler, const py::array& logits, const std::optional<py::array>& mask) {
  const std::optional<TokenMask> token_mask = mask_of(mask, "sample");
  return token_object(sampler.sample(row_of(logits), token_mask ? &*token_mask : nullptr));
}

py::array_t<double> distribution(Sampler& sampler, const py::array& logits,
                                 const std::optional<py::array>& mask) {
  const std::optional<TokenMask> token_mask = mask_of(mask, "sample");
  py::array_t<double> out(logits.size());
  sampler.distribution(row_of(logits), token_mask ? &*token_mask : nullptr,
                       {out.mutable_data(), static_cast<std::size_t>(out.size())});
  return out;
}

}  // namespace

void bind_sampler(py::module_& module) {
  py::class_<Sampler>(module, "Sampler")
      .def(py::init(&make_sampler), py::arg("sampling"), py::arg("vocab_size"), py::kw_only(),
           py::arg("prompt") = py::list(), py::arg("banned") = py::list(),
           py::arg("num_logprobs") = -1)
      .def("sample", &sample, py::arg("logits"), py::arg("mask") = py::none())
      .def("distribution", &distribution, py::arg("logits"), py::arg("mask") = py::none())
      .def_property_readonly("seed", &Sampler::seed)
      .def_property_readonly("draws", &Sampler::draws);
}

}  // namespace gptoss::bindings
