// A model's weights in device memory: laid out and counted before anything is allocated, then
// filled from a source by several threads, each with a stream and staging memory of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device.h"
#include "cuda/device_model.h"
#include "cuda/tensor_source.h"

namespace gptoss::cuda {

// Hands out consecutive pieces of one allocation; over no memory it only counts.
class Arena {
 public:
  explicit Arena(std::uint8_t* base) : base_(base) {}

  template <typename T>
  const T* take(std::int64_t count) {
    return reinterpret_cast<const T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }
  std::size_t num_bytes() const { return used_; }

 private:
  // Of any piece: whole lines, and what bulk copies want.
  static constexpr std::size_t kAlignment = 256;
  std::uintptr_t take_bytes(std::size_t num_bytes) {
    const std::size_t begin = used_;
    used_ += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<std::uintptr_t>(base_) + begin;
  }

  std::uint8_t* base_;
  std::size_t used_ = 0;
};

// Every pointer of the model set to a piece of the arena.
DeviceModel lay_out(const ModelConfig& config, Arena& arena);

class DeviceWeights {
 public:
  // Throws OutOfMemory with the numbers, before anything is allocated, when weights do not fit
  // beside what it takes to load them and the workspace that steps will want.
  DeviceWeights(const ModelConfig& config, const TensorSource& source, std::size_t workspace_bytes);

  static std::size_t planned_bytes(const ModelConfig& config);

  const DeviceModel& model() const { return model_; }
  std::size_t num_bytes() const { return memory_.num_bytes(); }

 private:
  DeviceBuffer memory_;
  DeviceModel model_;
};

}  // namespace gptoss::cuda
