// Compiled in place of the CUDA engine where there is none: absence as a file.
#include "backend/backend.h"
#include "backend/op_table.h"
#include "base/error.h"

namespace gptoss {

std::string cuda_status() {
  return "this build has no CUDA engine";
}

std::string cuda_device_text() {
  return "";
}

std::unique_ptr<Backend> make_cuda_backend(const ModelConfig&, const MappedCheckpoint&,
                                           const BackendOptions&) {
  throw DeviceError(
      "[load_model] expected a CUDA device, this build has no CUDA engine; use device='cpu'");
}

std::unique_ptr<OpTable> make_cuda_ops(int) {
  throw DeviceError(
      "[ops] expected a CUDA device, this build has no CUDA engine; use device='cpu'");
}

}  // namespace gptoss
