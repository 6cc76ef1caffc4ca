#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace gptoss {
namespace {

std::int64_t size_of(int descriptor) {
  struct stat info{};
  return fstat(descriptor, &info) == 0 ? static_cast<std::int64_t>(info.st_size) : -1;
}

void read_whole(int descriptor, std::byte* out, std::int64_t num_bytes, const std::string& path) {
  std::int64_t done = 0;
  while (done < num_bytes) {
    const ssize_t count = pread(descriptor, out + done, static_cast<std::size_t>(num_bytes - done),
                                static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    GPTOSS_REQUIRE(CheckpointError, count > 0, "[load_checkpoint] expected ", num_bytes,
                   " bytes in ", path, ", reading stopped at ", done, " (",
                   count == 0 ? "end of file" : std::strerror(errno), "); download it again");
    done += count;
  }
}

// Enters what the page cache holds into the page tables, 13.8 GB in 0.7 s; page faults would do it
// one by one in the middle of the first tokens, at a third of the cost of reading the weights.
// Nothing is read from the disk for it, and it ends early where the system is slow, or misleads.
void map_cached_pages(std::byte* data, std::int64_t num_bytes) {
#ifdef MADV_POPULATE_READ
  using Clock = std::chrono::steady_clock;
  constexpr std::int64_t kChunk = std::int64_t{32} << 20;
  constexpr std::int64_t kPiece = std::int64_t{2} << 20;  // entered or left out as a whole
  constexpr std::int64_t kPageBytes = 4096;
  constexpr double kLeastBytesPerSecond = 4e9;
  constexpr double kPatience = 0.05;  // seconds
  if (sysconf(_SC_PAGESIZE) != kPageBytes) return;
  std::vector<unsigned char> cached(static_cast<std::size_t>(kChunk / kPageBytes));
  const Clock::time_point start = Clock::now();
  for (std::int64_t begin = 0; begin < num_bytes; begin += kChunk) {
    const std::int64_t size = std::min(kChunk, num_bytes - begin);
    if (mincore(data + begin, static_cast<std::size_t>(size), cached.data()) != 0) return;
    const auto is_cached = [&](std::int64_t piece) {
      const auto first = cached.begin() + piece / kPageBytes;
      const auto last = cached.begin() + (std::min(piece + kPiece, size) - 1) / kPageBytes;
      return piece < size &&
             std::all_of(first, last + 1, [](unsigned char page) { return (page & 1) != 0; });
    };
    for (std::int64_t piece = 0; piece < size; piece += kPiece) {
      if (!is_cached(piece)) continue;
      const std::int64_t run = piece;
      while (is_cached(piece + kPiece)) piece += kPiece;
      const std::int64_t bytes = std::min(piece + kPiece, size) - run;
      const auto count = static_cast<std::size_t>(bytes);
      if (madvise(data + begin + run, count, MADV_POPULATE_READ) != 0) return;
    }
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    const double done = static_cast<double>(begin + size);
    if (elapsed.count() > kPatience + done / kLeastBytesPerSecond) return;
  }
#else
  static_cast<void>(data);
  static_cast<void>(num_bytes);
#endif
}

}  // namespace

MappedFile::MappedFile(const std::string& path, std::int64_t expected_bytes, MapMode mode)
    : path_(path), num_bytes_(expected_bytes), mode_(mode) {
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  GPTOSS_REQUIRE(CheckpointError, descriptor_ >= 0, "[load_checkpoint] expected a readable file ",
                 path, ", got: ", std::strerror(errno), "; check the path and its permissions");
  const std::int64_t found = size_of(descriptor_);
  const bool usable = found == expected_bytes && expected_bytes > 0;
  void* data = MAP_FAILED;
  if (usable && mode == MapMode::kShared) {
    data = mmap(nullptr, static_cast<std::size_t>(expected_bytes), PROT_READ, MAP_SHARED,
                descriptor_, 0);
  } else if (usable) {
    data = mmap(nullptr, static_cast<std::size_t>(expected_bytes), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (data == MAP_FAILED) {  // the destructor does not run for a constructor that throws
    const int reason = errno;
    close(descriptor_);
    GPTOSS_REQUIRE(CheckpointError, usable, "[load_checkpoint] expected ", expected_bytes,
                   " bytes in ", path, ", found ", found, "; it changed while being opened");
    throw OutOfMemory(cat("[load_checkpoint] expected to map ", expected_bytes, " bytes of ", path,
                          ", the system refused: ", std::strerror(reason)));
  }
#ifdef MADV_HUGEPAGE
  // Streaming weights from huge pages is about a fifth faster; a hint, which may be refused. Of a
  // mapped file it concerns what is read from the disk from now on: what the page cache holds in
  // small pages stays so.
  madvise(data, static_cast<std::size_t>(expected_bytes), MADV_HUGEPAGE);
#endif
  data_ = static_cast<const std::byte*>(data);
  if (mode == MapMode::kShared) map_cached_pages(static_cast<std::byte*>(data), expected_bytes);
  if (mode == MapMode::kCopy) {
    try {
      read_whole(descriptor_, static_cast<std::byte*>(data), expected_bytes, path);
    } catch (...) {
      munmap(data, static_cast<std::size_t>(expected_bytes));
      close(descriptor_);
      throw;
    }
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    munmap(const_cast<std::byte*>(data_), static_cast<std::size_t>(num_bytes_));
  }
  if (descriptor_ >= 0) close(descriptor_);
}

void MappedFile::lock() {
  if (mlock(data_, static_cast<std::size_t>(num_bytes_)) == 0) return;
  const int reason = errno;
  struct rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  throw OutOfMemory(cat("[load_checkpoint] expected to lock ", num_bytes_, " bytes of ", path_,
                        " in memory, the system refused (", std::strerror(reason),
                        "; this process may lock ", limit.rlim_cur,
                        " bytes); raise the limit with `ulimit -l` or load with lock=False"));
}

void MappedFile::check_not_shrunk() const {
  if (mode_ == MapMode::kCopy || descriptor_ < 0) return;
  const std::int64_t found = size_of(descriptor_);
  GPTOSS_REQUIRE(CheckpointError, found >= num_bytes_, "[forward] expected ", num_bytes_,
                 " bytes in ", path_, " as when it was opened, found ", found,
                 "; restore the file, or load with copy=True to be independent of it");
}

}  // namespace gptoss
