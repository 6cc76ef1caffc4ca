// C++ errors become the Python classes of gpt_oss_native.errors, one to one.
#include "base/error.h"
#include "bindings/bindings.h"

namespace gptoss::bindings {
namespace {

void raise(const char* name, const std::exception& error) {
  const py::object type = py::module_::import("gpt_oss_native.errors").attr(name);
  PyErr_SetString(type.ptr(), error.what());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const InvalidArgument& error) {
      raise("InvalidArgument", error);
    } catch (const CheckpointError& error) {
      raise("CheckpointError", error);
    } catch (const OutOfMemory& error) {
      raise("OutOfMemory", error);
    } catch (const DeviceError& error) {
      raise("DeviceError", error);
    } catch (const Error& error) {
      raise("GptOssError", error);
    } catch (const std::bad_alloc&) {
      raise("OutOfMemory", OutOfMemory("[allocate] the system has no more memory; close sessions "
                                       "or use a shorter context"));
    }
  });
}

}  // namespace gptoss::bindings
