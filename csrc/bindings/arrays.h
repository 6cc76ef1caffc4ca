// numpy arrays as views: dtype, rank and layout are checked, nothing is copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "base/view.h"

namespace gptoss::bindings {

namespace py = pybind11;

inline std::string array_text(const py::array& array) {
  std::string text;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) text += cat('[', array.shape(i), ']');
  text += " " + py::str(py::object(array.dtype())).cast<std::string>();
  return (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0 ? text
                                                                        : text + " unaligned";
}

// The kind and size of T's numpy dtype; bf16 travels as uint16.
template <typename T>
struct NumpyType {
  static constexpr char kKind = std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 'i' : 'u';
};
template <>
struct NumpyType<bf16> {
  static constexpr char kKind = 'u';
};

// What numpy calls the byte order that is not this machine's; it calls its own '='.
constexpr char kForeignOrder = std::endian::native == std::endian::little ? '>' : '<';

// Dtype, rank, byte order and alignment (bf16 and bytes may lie anywhere).
template <typename T>
T* checked_data(const py::array& array, const char* op, const char* name, int ndim,
                const std::string& expected) {
  using Value = std::remove_const_t<T>;
  const bool ok = array.ndim() == ndim && array.dtype().kind() == NumpyType<Value>::kKind &&
                  array.itemsize() == static_cast<py::ssize_t>(sizeof(Value)) &&
                  array.dtype().byteorder() != kForeignOrder &&
                  reinterpret_cast<std::uintptr_t>(array.data()) % alignof(Value) == 0;
  GPTOSS_REQUIRE(InvalidArgument, ok, "[", op, "] ", name, ": expected ", expected, ", got ",
                 array_text(array));
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(array.data());
  } else {
    GPTOSS_REQUIRE(InvalidArgument, array.writeable(), "[", op, "] ", name,
                   ": expected an array that can be written, got a read-only one");
    return static_cast<T*>(const_cast<py::array&>(array).mutable_data());
  }
}

// A matrix whose rows may be further apart than they are long; -1 accepts any size.
template <typename T>
MatrixView<T> matrix_of(const py::array& array, const char* op, const char* name,
                        std::int64_t rows = -1, std::int64_t cols = -1) {
  const auto size = [](std::int64_t value) { return value < 0 ? std::string("*") : cat(value); };
  const std::string expected =
      cat('[', size(rows), "][", size(cols), "] of ", sizeof(T), "-byte elements, rows contiguous");
  T* data = checked_data<T>(array, op, name, 2, expected);
  const py::ssize_t item = array.itemsize();
  const bool empty = array.size() == 0;  // numpy then gives no strides to rely on
  const bool ok = (rows < 0 || array.shape(0) == rows) && (cols < 0 || array.shape(1) == cols) &&
                  (empty || array.shape(1) <= 1 || array.strides(1) == item) &&
                  array.strides(0) % item == 0 &&
                  (empty || array.shape(0) <= 1 || array.strides(0) >= array.shape(1) * item);
  GPTOSS_REQUIRE(InvalidArgument, ok, "[", op, "] ", name, ": expected ", expected, ", got ",
                 array_text(array));
  return {data, array.shape(0), array.shape(1),
          array.shape(0) <= 1 ? array.shape(1) : array.strides(0) / item};
}

template <typename T>
T* vector_of(const py::array& array, const char* op, const char* name, std::int64_t size) {
  const std::string expected = cat('[', size, "] of ", sizeof(T), "-byte elements, contiguous");
  T* data = checked_data<T>(array, op, name, 1, expected);
  GPTOSS_REQUIRE(InvalidArgument,
                 array.shape(0) == size && (size <= 1 || array.strides(0) == array.itemsize()), "[",
                 op, "] ", name, ": expected ", expected, ", got ", array_text(array));
  return data;
}

// Any shape, contiguous, so many elements in all.
template <typename T>
T* block_of(const py::array& array, const char* op, const char* name,
            const std::vector<py::ssize_t>& shape) {
  std::string expected;
  for (const py::ssize_t size : shape) expected += cat('[', size, ']');
  T* data = checked_data<T>(array, op, name, static_cast<int>(shape.size()), expected);
  bool ok = (array.flags() & py::array::c_style) != 0;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    ok = ok && array.shape(static_cast<py::ssize_t>(i)) == shape[i];
  }
  GPTOSS_REQUIRE(InvalidArgument, ok, "[", op, "] ", name, ": expected contiguous ", expected,
                 ", got ", array_text(array));
  return data;
}

}  // namespace gptoss::bindings
