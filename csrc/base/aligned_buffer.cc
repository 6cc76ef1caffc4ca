#include "base/aligned_buffer.h"

#include <sys/mman.h>

#include "base/error.h"

namespace gptoss {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t num_bytes, const char* what) {
  if (num_bytes == 0) return;
  const std::size_t mapped = round_up(num_bytes, kPageBytes);
  void* data = MAP_FAILED;
  if (mapped >= num_bytes) {  // no wrap-around
    data = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  GPTOSS_REQUIRE(OutOfMemory, data != MAP_FAILED, "[allocate] expected ", num_bytes, " bytes for ",
                 what,
                 ", the system refused; use a shorter context, fewer sessions or a smaller model");
#ifdef MADV_HUGEPAGE
  if (mapped >= 2 * kHugePageBytes) madvise(data, mapped, MADV_HUGEPAGE);  // a hint; may be refused
#endif
  data_ = static_cast<std::byte*>(data);
  num_bytes_ = mapped;
}

void AlignedBuffer::release() noexcept {
  if (data_ != nullptr) munmap(data_, num_bytes_);
  data_ = nullptr;
  num_bytes_ = 0;
}

}  // namespace gptoss
