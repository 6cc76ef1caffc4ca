// Arrays of ops: numpy's, or those of any library in a CUDA device's memory, by DLPack. The latter
// travel as numpy arrays of the same shape, strides and dtype whose data lies on the device: what
// checks them reads no element.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace gptoss::bindings {

namespace py = pybind11;

struct OpArray : py::array {
  using py::array::array;
  OpArray() = default;
  explicit OpArray(const py::array& other) : py::array(other) {}
  bool on_device = false;
};

// Whether the object offers DLPack and lies in a CUDA device's memory.
bool is_cuda_array(py::handle object);
// Keeps the memory alive; what its library has queued on it is done on return.
py::array import_cuda_array(py::handle object);

}  // namespace gptoss::bindings

namespace pybind11::detail {

template <>
struct type_caster<gptoss::bindings::OpArray> {
  PYBIND11_TYPE_CASTER(gptoss::bindings::OpArray, const_name("Array"));

  bool load(handle source, bool) {
    if (isinstance<array>(source)) {
      value = gptoss::bindings::OpArray(reinterpret_borrow<array>(source));
      return true;
    }
    if (!gptoss::bindings::is_cuda_array(source)) return false;
    value = gptoss::bindings::OpArray(gptoss::bindings::import_cuda_array(source));
    value.on_device = true;
    return true;
  }
};

}  // namespace pybind11::detail
