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

// One option as a T; pybind11's own complaint would name neither the option nor what came.
template <typename T>
T sampling_option(const py::object& sampling, const char* name, const char* expected) {
  const py::object value = sampling.attr(name);
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw InvalidArgument(cat("[sampling] ", name, ": expected ", expected, ", got ",
                              py::repr(value).cast<std::string>()));
  }
}

// Any Python integer is a seed; only its low 64 bits count.
inline std::uint64_t seed_of(const py::object& seed) {
  const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(seed.ptr()));
  if (!integer) {
    PyErr_Clear();
    throw InvalidArgument(cat("[sampling] seed: expected an integer or None, got ",
                              py::repr(seed).cast<std::string>()));
  }
  return py::int_(integer.attr("__and__")(py::int_(~std::uint64_t{0}))).cast<std::uint64_t>();
}

// `sampling` is gpt_oss_native.sampling.Sampling; its values are checked by the sampler.
inline SamplingOptions sampling_of(const py::object& sampling, std::int64_t num_logprobs) {
  const auto real = [&](const char* name) {
    return sampling_option<double>(sampling, name, "a number");
  };
  SamplingOptions options;
  options.temperature = real("temperature");
  options.top_k = sampling_option<std::int64_t>(sampling, "top_k", "an integer");
  options.top_p = real("top_p");
  options.min_p = real("min_p");
  options.repetition_penalty = real("repetition_penalty");
  options.presence_penalty = real("presence_penalty");
  options.frequency_penalty = real("frequency_penalty");
  for (const auto& [token, bias] : sampling_option<std::map<std::int32_t, float>>(
           sampling, "logit_bias", "a mapping of ids to numbers")) {
    options.logit_bias.emplace_back(token, bias);
  }
  if (const py::object seed = sampling.attr("seed"); !seed.is_none()) {
    options.seed = seed_of(seed);
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
