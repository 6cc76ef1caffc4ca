#include "cuda/device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace gptoss::cuda {
namespace {

std::string memory_text(std::size_t num_bytes, const char* what) {
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) free_bytes = total_bytes = 0;
  return cat("[", what, "] expected ", num_bytes, " bytes of device memory, ", free_bytes, " of ",
             total_bytes, " are free; close other models or sessions, or use a smaller context");
}

int forced_capability(const char* text) {
  const int capability = std::atoi(text);
  GPTOSS_REQUIRE(InvalidArgument, capability >= 80 && capability < 1000,
                 "[cuda_device] GPT_OSS_NATIVE_CUDA_ARCH: expected a compute capability such as 80 "
                 "or 90, got '",
                 text, "'");
  return capability;
}

std::size_t forced_smem(const char* text) {
  const long num_bytes = std::atol(text);
  GPTOSS_REQUIRE(InvalidArgument, num_bytes >= 48 << 10,
                 "[cuda_device] GPT_OSS_NATIVE_CUDA_SMEM: expected at least 49152 bytes of shared "
                 "memory a block, got '",
                 text, "'");
  return static_cast<std::size_t>(num_bytes);
}

}  // namespace

void check(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  const std::string text = cat("[", op, "] the CUDA runtime reports ", cudaGetErrorName(status),
                               ": ", cudaGetErrorString(status));
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(text);
  throw DeviceError(text);
}

DeviceBuffer::DeviceBuffer(std::size_t num_bytes, const char* what) : OwnedMemory(num_bytes) {
  if (num_bytes == 0) return;
  const cudaError_t status = cudaMalloc(&data_, num_bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory(memory_text(num_bytes, what));
  }
  check(status, what);
}

PinnedBuffer::PinnedBuffer(std::size_t num_bytes, const char* what) : OwnedMemory(num_bytes) {
  if (num_bytes == 0) return;
  check(cudaHostAlloc(&data_, num_bytes, cudaHostAllocMapped | cudaHostAllocPortable), what);
}

Stream::Stream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cuda_stream");
}

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Event::Event() {
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cuda_event");
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

TimingEvent::TimingEvent() {
  check(cudaEventCreate(&event_), "cuda_event");
}

TimingEvent::~TimingEvent() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

Graph::~Graph() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}

void Graph::begin(cudaStream_t stream, const char* op) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), op);
}

void Graph::end(cudaStream_t stream, const char* op) {
  cudaGraph_t captured = nullptr;
  check(cudaStreamEndCapture(stream, &captured), op);
  const cudaError_t status = cudaGraphInstantiate(&exec_, captured, 0);
  cudaGraphDestroy(captured);
  check(status, op);
}

void Graph::abandon(cudaStream_t stream) noexcept {
  cudaGraph_t captured = nullptr;
  cudaStreamEndCapture(stream, &captured);
  if (captured != nullptr) cudaGraphDestroy(captured);
}

DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cuda_device");
  DeviceInfo info;
  info.index = index;
  info.num_sms = properties.multiProcessorCount;
  info.compute_capability = 10 * properties.major + properties.minor;
  // Kernels of an older architecture are tested on a newer one.
  if (const char* forced = std::getenv("GPT_OSS_NATIVE_CUDA_ARCH")) {
    info.compute_capability = std::min(info.compute_capability, forced_capability(forced));
  }
  info.smem_per_block = properties.sharedMemPerBlockOptin;
  if (const char* forced = std::getenv("GPT_OSS_NATIVE_CUDA_SMEM")) {
    info.smem_per_block = std::min(info.smem_per_block, forced_smem(forced));
  }
  info.smem_per_sm = properties.sharedMemPerMultiprocessor;
  info.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  static_assert(sizeof(info.name) == sizeof(properties.name));
  std::memcpy(info.name, properties.name, sizeof(info.name));
  return info;
}

}  // namespace gptoss::cuda
