// Owning, 64-byte aligned memory. Large buffers are mapped and ask for huge pages; they go back to
// the system when the buffer dies. Contents are zero when fresh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace gptoss {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Throws OutOfMemory naming `what` and the size.
  AlignedBuffer(std::size_t num_bytes, const char* what);
  ~AlignedBuffer() { release(); }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        num_bytes_(std::exchange(other.num_bytes_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    if (this != &other) {
      release();
      data_ = std::exchange(other.data_, nullptr);
      num_bytes_ = std::exchange(other.num_bytes_, 0);
    }
    return *this;
  }

  std::size_t num_bytes() const { return num_bytes_; }
  explicit operator bool() const { return data_ != nullptr; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

  // Keeps the allocation when it is large enough; contents are then unspecified.
  void ensure(std::size_t num_bytes, const char* what) {
    if (num_bytes > num_bytes_) *this = AlignedBuffer(num_bytes, what);
  }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

}  // namespace gptoss
