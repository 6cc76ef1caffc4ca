// Arrays of an op's caller, in host or device memory, as contiguous device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/view.h"
#include "cuda/device.h"

namespace gptoss::cuda {

inline bool is_device_memory(const void* data) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, data) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

// A matrix on the device: the caller's own memory where it is there without gaps between its rows,
// a copy elsewhere. `finish` brings what was written back.
template <typename T>
class OpMatrix {
 public:
  explicit OpMatrix(MatrixView<T> view) : view_(view) {
    const bool gaps = view.rows > 1 && view.stride != view.cols;
    const bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % kAlignment == 0;
    if (!gaps && aligned && is_device_memory(view.data)) return;
    copy_ = DeviceBuffer(static_cast<std::size_t>(view.rows * view.cols) * sizeof(T), "op");
    if (copy_.num_bytes() > 0) transfer(copy_.as<T>(), view_.cols, view_.data, view_.stride);
  }

  std::remove_const_t<T>* data() const {
    return copy_.num_bytes() > 0 ? copy_.as<std::remove_const_t<T>>()
                                 : const_cast<std::remove_const_t<T>*>(view_.data);
  }
  void finish() {
    if (copy_.num_bytes() > 0) transfer(view_.data, view_.stride, copy_.as<T>(), view_.cols);
  }

 private:
  static constexpr std::size_t kAlignment = 16;  // what kernels load at once

  void transfer(const void* to, std::int64_t to_stride, const void* from,
                std::int64_t from_stride) {
    const auto bytes = [](std::int64_t count) {
      return static_cast<std::size_t>(count) * sizeof(T);
    };
    check(cudaMemcpy2D(const_cast<void*>(to), bytes(to_stride), from, bytes(from_stride),
                       bytes(view_.cols), static_cast<std::size_t>(view_.rows), cudaMemcpyDefault),
          "op");
    // A copy from pageable memory may still be on its way, and kernels run on another stream.
    check(cudaStreamSynchronize(cudaStreamLegacy), "op");
  }

  MatrixView<T> view_;
  DeviceBuffer copy_;
};

template <typename T>
OpMatrix<T> op_vector(T* data, std::int64_t size) {
  return OpMatrix<T>(matrix(data, 1, size));
}

// The elements of a matrix anywhere, contiguous in host memory.
template <typename T>
std::vector<std::remove_const_t<T>> to_host(MatrixView<T> view) {
  std::vector<std::remove_const_t<T>> out(static_cast<std::size_t>(view.rows * view.cols));
  if (out.empty()) return out;
  const std::size_t row_bytes = static_cast<std::size_t>(view.cols) * sizeof(T);
  check(cudaMemcpy2D(out.data(), row_bytes, view.data,
                     static_cast<std::size_t>(view.stride) * sizeof(T), row_bytes,
                     static_cast<std::size_t>(view.rows), cudaMemcpyDefault),
        "op");
  return out;
}

}  // namespace gptoss::cuda
