// A file mapped read-only. Bytes stay in the page cache and are shared between processes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace gptoss {

enum class MapMode { kShared, kCopy };

class MappedFile {
 public:
  MappedFile() = default;
  // kCopy reads the file into private memory, safe against a file that shrinks later.
  // Throws CheckpointError when the file is missing, unreadable or not `expected_bytes` long.
  MappedFile(const std::string& path, std::int64_t expected_bytes, MapMode mode);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept { swap(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    swap(other);
    return *this;
  }

  const std::byte* data() const { return data_; }
  std::int64_t num_bytes() const { return num_bytes_; }
  const std::string& path() const { return path_; }

  // Pins the pages in memory. Throws OutOfMemory with the limit that stood in the way.
  void lock();
  // The size on disk now; smaller than num_bytes() means that reading the tail would fault.
  // A copied file never shrinks.
  void check_not_shrunk() const;

 private:
  void swap(MappedFile& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    std::swap(mode_, other.mode_);
    std::swap(descriptor_, other.descriptor_);
  }

  std::string path_;
  const std::byte* data_ = nullptr;
  std::int64_t num_bytes_ = 0;
  MapMode mode_ = MapMode::kShared;
  int descriptor_ = -1;  // kept for check_not_shrunk
};

}  // namespace gptoss
