// What generations and the bare sampler share: options and masks in, sampled tokens out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <limits>
#include <map>
#include <optional>

#include "bindings/arrays.h"
#include "engine/sampler.h"

namespace gptoss::bindings {

// `sampling` is gpt_oss_native.sampling.Sampling; its values are checked by the sampler.
inline SamplingOptions sampling_of(const py::object& sampling, std::int64_t num_logprobs) {
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

// A view of the array, bool [vocab] or packed bits as uint8; valid while the array lives.
inline std::optional<TokenMask> mask_of(const std::optional<py::array>& mask, const char* op) {
  if (!mask) return std::nullopt;
  const std::uint8_t* data = [&] {
    if (mask->dtype().kind() == 'b' && mask->ndim() == 1) {
      return static_cast<const std::uint8_t*>(mask->data());
    }
    return checked_data<const std::uint8_t>(*mask, op, "mask", 1,
                                            "[vocab] bool, or packed bits as uint8");
  }();
  GPTOSS_REQUIRE(InvalidArgument, mask->size() <= 1 || mask->strides(0) == 1, "[", op,
                 "] mask: expected a contiguous array");
  return TokenMask{mask->dtype().kind() == 'b' ? MaskFormat::kBytes : MaskFormat::kBits,
                   {data, static_cast<std::size_t>(mask->size())}};
}

// A plain id, or (id, logprob, [(id, logprob), ...]) where logprobs were asked for.
inline py::object token_object(const SampledToken& token) {
  if (!token.logprob) return py::int_(token.token);
  py::list top;
  for (const TokenLogprob& entry : token.top) {
    top.append(py::make_tuple(entry.token, entry.logprob));
  }
  return py::make_tuple(token.token, *token.logprob, top);
}

}  // namespace gptoss::bindings
