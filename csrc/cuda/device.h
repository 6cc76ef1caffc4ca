// Handles of the CUDA runtime with an owner, and the one way in which its errors become ours.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/error.h"

namespace gptoss::cuda {

// Throws OutOfMemory or DeviceError: `[op] expected ..., got the CUDA error ...`.
void check(cudaError_t status, const char* op);
// After a launch: reports what the launch itself found wrong.
inline void check_launch(const char* op) {
  check(cudaGetLastError(), op);
}

// A block of memory with an owner; kFree gives it back.
template <cudaError_t (*kFree)(void*)>
class OwnedMemory {
 public:
  OwnedMemory() = default;
  OwnedMemory(OwnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        num_bytes_(std::exchange(other.num_bytes_, 0)) {}
  OwnedMemory& operator=(OwnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }
  ~OwnedMemory() {
    if (data_ != nullptr) kFree(data_);
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t num_bytes() const { return num_bytes_; }

 protected:
  explicit OwnedMemory(std::size_t num_bytes) : num_bytes_(num_bytes) {}

  void* data_ = nullptr;

 private:
  std::size_t num_bytes_ = 0;
};

// Device memory, uninitialised. Throws OutOfMemory with the sizes when it does not fit.
class DeviceBuffer : public OwnedMemory<cudaFree> {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::size_t num_bytes, const char* what);
};

// Page-locked host memory, mapped into the device's address space.
class PinnedBuffer : public OwnedMemory<cudaFreeHost> {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(std::size_t num_bytes, const char* what);
};

class Stream {
 public:
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  cudaStream_t get() const { return stream_; }
  void synchronize(const char* op) const { check(cudaStreamSynchronize(stream_), op); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// One that knows the time.
class TimingEvent {
 public:
  TimingEvent();
  TimingEvent(const TimingEvent&) = delete;
  TimingEvent& operator=(const TimingEvent&) = delete;
  ~TimingEvent();

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Queued work that is launched again as a whole: 1.3 us of the host for one kernel or a hundred,
// where each launch of its own takes 3 to 5 (H200).
class Graph {
 public:
  Graph() = default;
  // What queue() puts on the stream, which it does not run.
  template <typename Queue>
  Graph(cudaStream_t stream, const char* op, Queue&& queue);
  Graph(Graph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  ~Graph();

  bool empty() const { return exec_ == nullptr; }
  void launch(cudaStream_t stream, const char* op) const {
    check(cudaGraphLaunch(exec_, stream), op);
  }

 private:
  static void begin(cudaStream_t stream, const char* op);
  void end(cudaStream_t stream, const char* op);
  static void abandon(cudaStream_t stream) noexcept;

  cudaGraphExec_t exec_ = nullptr;
};

template <typename Queue>
Graph::Graph(cudaStream_t stream, const char* op, Queue&& queue) {
  begin(stream, op);
  try {
    queue();
  } catch (...) {
    abandon(stream);
    throw;
  }
  end(stream, op);
}

// What the kernels choose by.
struct DeviceInfo {
  int index = 0;
  int num_sms = 0;
  int compute_capability = 0;  // 90 for 9.0, or less where GPT_OSS_NATIVE_CUDA_ARCH says so
  std::size_t smem_per_block =
      0;  // most a block may ask for; GPT_OSS_NATIVE_CUDA_SMEM may lower it
  std::size_t smem_per_sm = 0;
  std::size_t l2_bytes = 0;
  char name[256] = {};
};

DeviceInfo device_info(int index);

}  // namespace gptoss::cuda
