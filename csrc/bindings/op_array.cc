#include "bindings/op_array.h"

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace gptoss::bindings {
namespace {

// The structures of DLPack 0.8 and 1.x (dmlc/dlpack, dlpack.h), unversioned form.
struct DlDevice {
  std::int32_t type;
  std::int32_t id;
};
struct DlDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t ndim;
  DlDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: contiguous
  std::uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* manager;
  void (*deleter)(DlManagedTensor*);
};

constexpr std::int32_t kDlCuda = 2;
constexpr std::int32_t kDlCudaManaged = 13;
constexpr const char* kCapsule = "dltensor";
constexpr const char* kUsedCapsule = "used_dltensor";

// bf16 travels as uint16, as everywhere in the op table.
py::dtype dtype_of(const DlDataType& type) {
  constexpr const char* kKinds[] = {"i", "u", "f", nullptr, "u"};  // by DLPack's code; 4: bfloat
  const bool known =
      type.lanes == 1 && type.code < 5 && kKinds[type.code] != nullptr && type.bits % 8 == 0;
  GPTOSS_REQUIRE(InvalidArgument, known,
                 "[ops] expected an array of floats, integers or bfloat16, got DLPack type ",
                 int{type.code}, " of ", int{type.bits}, " bits");
  return py::dtype(cat(kKinds[type.code], type.bits / 8));
}

}  // namespace

bool is_cuda_array(py::handle object) {
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__")) return false;
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  return device.first == kDlCuda || device.first == kDlCudaManaged;
}

py::array import_cuda_array(py::handle object) {
  constexpr int kLegacyDefaultStream = 1;
  const py::object capsule = object.attr("__dlpack__")(py::arg("stream") = kLegacyDefaultStream);
  auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule));
  if (managed == nullptr) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), kUsedCapsule);
  const py::capsule owner(managed, [](void* data) {
    auto* held = static_cast<DlManagedTensor*>(data);
    if (held->deleter != nullptr) held->deleter(held);
  });
  const DlTensor& tensor = managed->tensor;
  const py::dtype dtype = dtype_of(tensor.dtype);
  std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<py::ssize_t> strides(shape.size());
  py::ssize_t next = dtype.itemsize();
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = tensor.strides == nullptr ? next : tensor.strides[i] * dtype.itemsize();
    next *= shape[i];
  }
  return py::array(dtype, shape, strides, static_cast<std::byte*>(tensor.data) + tensor.byte_offset,
                   owner);
}

}  // namespace gptoss::bindings
