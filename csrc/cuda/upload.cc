#include "cuda/upload.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace gptoss::cuda {
namespace {

// Pieces of a slot begin at whole lines.
constexpr std::size_t kAlignment = 256;

std::size_t aligned(std::size_t num_bytes) {
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Lane::Lane(const TensorSource& source, std::size_t slot_bytes) : source_(source) {
  for (Slot& slot : slots_) {
    slot.pinned = PinnedBuffer(slot_bytes, "upload");
    slot.device = DeviceBuffer(slot_bytes, "upload");
  }
}

void Lane::begin_task() {
  current_ = 1 - current_;
  used_ = 0;
  check(cudaEventSynchronize(slots_[current_].free.get()), "upload");
}

void Lane::end_task() {
  check(cudaEventRecord(slots_[current_].free.get(), stream()), "upload");
}

std::byte* Lane::take(std::size_t num_bytes, std::size_t* offset) {
  *offset = used_;
  used_ += aligned(num_bytes);
  GPTOSS_REQUIRE(DeviceError, used_ <= slots_[current_].device.num_bytes(),
                 "[upload] expected a task of at most ", slots_[current_].device.num_bytes(),
                 " bytes, got ", used_);
  return slots_[current_].pinned.as<std::byte>() + *offset;
}

const std::uint8_t* Lane::fetch(const TensorSlice& slice) {
  std::size_t offset = 0;
  std::byte* const pinned = take(slice.num_bytes, &offset);
  std::uint8_t* const out = slots_[current_].device.as<std::uint8_t>() + offset;
  source_.read(slice, pinned, out, stream());
  return out;
}

void Lane::fetch_to(const TensorSlice& slice, std::uint8_t* out) {
  std::size_t offset = 0;
  std::byte* const pinned = take(slice.num_bytes, &offset);
  source_.read(slice, pinned, out, stream());
}

void Upload::add(std::size_t num_bytes, Task task) {
  largest_ = std::max(largest_, num_bytes);
  tasks_.push_back(std::move(task));
}

std::size_t Upload::slot_bytes() const {
  return aligned(largest_) + 4 * kAlignment;  // a task fetches a few slices
}

std::size_t Upload::staging_bytes() const {
  return static_cast<std::size_t>(source_.num_readers()) * 2 * slot_bytes();
}

void Upload::run() {
  int device = 0;
  check(cudaGetDevice(&device), "upload");
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    try {
      check(cudaSetDevice(device), "upload");  // the current device is each thread's own
      Lane lane(source_, slot_bytes());
      for (std::size_t i = next++; i < tasks_.size(); i = next++) {
        lane.begin_task();
        tasks_[i](lane);
        lane.end_task();
      }
      lane.finish();
    } catch (...) {
      next = tasks_.size();
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  const std::size_t wanted =
      std::min(static_cast<std::size_t>(source_.num_readers()), tasks_.size());
  std::vector<std::thread> threads;
  try {
    while (threads.size() + 1 < wanted) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // Fewer threads, then.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace gptoss::cuda
