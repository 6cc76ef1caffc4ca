// From a tensor source to the device: tasks shared among threads, each with a stream and two slots
// of staging memory, so that one slot is filled by the host while the other is on its way.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/device.h"
#include "cuda/tensor_source.h"

namespace gptoss::cuda {

// What a task works with: one thread's stream and one of its slots.
class Lane {
 public:
  Lane(const TensorSource& source, std::size_t slot_bytes);

  cudaStream_t stream() const { return stream_.get(); }
  // The slice in staging memory of the device, in the order of the stream, until the task's end.
  const std::uint8_t* fetch(const TensorSlice& slice);
  // The slice where it belongs.
  void fetch_to(const TensorSlice& slice, std::uint8_t* out);

  void begin_task();
  void end_task();
  void finish() { stream_.synchronize("upload"); }

 private:
  struct Slot {
    PinnedBuffer pinned;
    DeviceBuffer device;
    Event free;  // after what was queued on it last
  };
  std::byte* take(std::size_t num_bytes, std::size_t* offset);

  const TensorSource& source_;
  Stream stream_;
  Slot slots_[2];
  int current_ = 0;
  std::size_t used_ = 0;
};

class Upload {
 public:
  static constexpr std::size_t kTaskBytes = std::size_t{8} << 20;
  using Task = std::function<void(Lane&)>;

  explicit Upload(const TensorSource& source) : source_(source) {}

  // `num_bytes`: what the task fetches in all.
  void add(std::size_t num_bytes, Task task);
  // What `run` allocates on the device while it runs, at most (for tasks of kTaskBytes).
  std::size_t staging_bytes() const;
  // All tasks; throws what the first failing one threw, after every thread has stopped.
  void run();

 private:
  std::size_t slot_bytes() const;

  const TensorSource& source_;
  std::vector<Task> tasks_;
  std::size_t largest_ = kTaskBytes;
};

}  // namespace gptoss::cuda
