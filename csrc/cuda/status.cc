// What stands between this process and a CUDA device, in words.
#include "cuda/status.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "base/error.h"
#include "cuda/device.h"

namespace gptoss {
namespace cuda {
namespace {

// "580.65.06" from the kernel module's own words; empty where there is none.
std::string driver_version() {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(
      std::fopen("/proc/driver/nvidia/version", "r"),
      [](std::FILE* f) { return f == nullptr ? 0 : std::fclose(f); });
  if (file == nullptr) return "";
  char line[512] = {};
  if (std::fgets(line, sizeof(line), file.get()) == nullptr) return "";
  const std::string text = line;
  // Two or three numbers with points between them.
  for (std::size_t begin = 0; begin < text.size(); ++begin) {
    const std::size_t end = text.find_first_not_of("0123456789.", begin);
    const std::string word = text.substr(begin, end - begin);
    if (word.find('.') != std::string::npos && word.front() != '.') return word;
    if (end == std::string::npos) break;
    begin = end;
  }
  return "";
}

std::string why_no_driver() {
  int version = 0;
  const cudaError_t status = cudaDriverGetVersion(&version);
  const std::string driver = driver_version();
  if (status != cudaSuccess || version == 0) {
    return driver.empty() ? "no NVIDIA driver is installed"
                          : cat("driver ", driver, " does not load in this process");
  }
  if (version >= CUDART_VERSION / 1000 * 1000) return "";
  return cat("driver ",
             driver.empty() ? cat("for CUDA ", version / 1000, '.', version % 1000 / 10) : driver,
             " is older than 580, which CUDA ", CUDART_VERSION / 1000, " needs");
}

}  // namespace

std::string device_status(int index) {
  if (const std::string text = why_no_driver(); !text.empty()) return text;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (status == cudaErrorInitializationError) {
    return "CUDA was used before this process was forked, and cannot be used after; start "
           "processes with the spawn method";
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return visible == nullptr ? "no GPU is found"
                              : cat("no GPU is visible, CUDA_VISIBLE_DEVICES is '", visible, "'");
  }
  if (status != cudaSuccess) {
    return cat("the CUDA runtime reports ", cudaGetErrorName(status), ": ",
               cudaGetErrorString(status));
  }
  if (index >= count) return cat("there is no device ", index, ", the last is ", count - 1);
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
    cudaGetLastError();
    return cat("device ", index, " does not answer");
  }
  if (properties.major < 8) {
    return cat(static_cast<const char*>(properties.name), " has compute capability ",
               properties.major, '.', properties.minor, ", 8.0 or newer is needed");
  }
  return "";
}

}  // namespace cuda

std::string cuda_status() {
  return cuda::device_status(0);
}

std::string cuda_device_text() {
  if (!cuda_status().empty()) return "";
  const cuda::DeviceInfo info = cuda::device_info(0);
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, 0), "cuda_device");
  return cat(static_cast<const char*>(info.name), ", compute capability ", properties.major, '.',
             properties.minor, ", ", info.num_sms, " multiprocessors, ",
             properties.totalGlobalMem >> 20, " MiB, driver ", cuda::driver_version());
}

}  // namespace gptoss
