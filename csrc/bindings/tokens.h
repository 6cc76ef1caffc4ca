// Token ids from any Python sequence or integer array.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "base/error.h"

namespace gptoss::bindings {

// Says what is wrong with what is no array of token ids: the first element that is none, if it has
// elements, else its type.
[[noreturn]] inline void refuse_tokens(const pybind11::object& object, const char* op) {
  namespace py = pybind11;
  PyErr_Clear();
  if (py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object)) {
    py::ssize_t index = 0;
    for (const py::handle element : object) {
      const bool fits = PyIndex_Check(element.ptr()) != 0 && !PyBool_Check(element.ptr());
      int overflow = 0;
      if (fits) PyLong_AsLongLongAndOverflow(element.ptr(), &overflow);
      PyErr_Clear();
      GPTOSS_REQUIRE(InvalidArgument, fits && overflow == 0, "[", op, "] tokens[", index,
                     "]: expected a token id of the vocabulary, got ",
                     py::repr(element).cast<std::string>());
      ++index;
    }
  }
  throw InvalidArgument(cat("[", op, "] tokens: expected a flat sequence of integers, got ",
                            py::repr(py::type::of(object)).cast<std::string>()));
}

inline std::vector<std::int32_t> tokens_of(const pybind11::object& object, const char* op) {
  namespace py = pybind11;
  // Booleans, floats and nested lists are not token ids, so the array's own dtype is looked at.
  const py::array array = py::array::ensure(object);
  const bool empty = array && array.size() == 0 && array.ndim() == 1;
  if (!array || array.ndim() != 1 ||
      (!empty && array.dtype().kind() != 'i' && array.dtype().kind() != 'u')) {
    refuse_tokens(object, op);
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
