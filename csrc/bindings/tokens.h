// Token ids from any Python sequence or integer array.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "base/error.h"

namespace gptoss::bindings {

inline std::vector<std::int32_t> tokens_of(const pybind11::object& object, const char* op) {
  namespace py = pybind11;
  // Booleans, floats and nested lists are not token ids, so the array's own dtype is looked at.
  const py::array array = py::array::ensure(object);
  const bool empty = array && array.size() == 0 && array.ndim() == 1;
  if (!array || array.ndim() != 1 ||
      (!empty && array.dtype().kind() != 'i' && array.dtype().kind() != 'u')) {
    PyErr_Clear();
    throw InvalidArgument(cat("[", op, "] tokens: expected a flat sequence of integers, got ",
                              py::repr(py::type::of(object)).cast<std::string>()));
  }
  if (empty) return {};
  GPTOSS_REQUIRE(InvalidArgument, array.dtype().kind() == 'i' || array.itemsize() < 8, "[", op,
                 "] tokens: expected signed or at most 32-bit integers, got uint64");
  const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(array);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(wide.size()));
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const std::int64_t token = wide.data()[i];
    GPTOSS_REQUIRE(InvalidArgument, token >= 0 && token <= std::numeric_limits<std::int32_t>::max(),
                   "[", op, "] tokens[", i, "]: expected a token id of the vocabulary, got ",
                   token);
    tokens[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(token);
  }
  return tokens;
}

}  // namespace gptoss::bindings
