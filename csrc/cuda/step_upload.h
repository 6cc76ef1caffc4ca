// A batch on its way to the device: the arrays of step.h, packed into pinned host memory, which one
// kernel reads and spreads to addresses that stay the same from step to step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/batch.h"
#include "cuda/device.h"
#include "cuda/kernels/spread_step.h"
#include "cuda/kv_storage.h"
#include "cuda/step.h"

namespace gptoss::cuda {

class StepUpload {
 public:
  StepUpload(std::int64_t max_rows, std::int64_t num_layers, std::int64_t experts_per_token,
             std::int64_t num_draws);

  // Queues the batch; the view holds once the stream is there. Rows past the batch's, up to
  // kSmallRows, have token and position -1. Addresses change only where a batch needs more room
  // than any before; those who keep them compare.
  StepView upload(const Batch& batch, const KvStorage& storage, cudaStream_t stream);

  // Draws of earlier steps, which a segment's token may name: [num_draws].
  std::int32_t* draws() const { return draws_.as<std::int32_t>(); }
  std::size_t num_bytes() const;

 private:
  // The arrays of a step, in the order in which they are packed.
  enum Array { kTokens, kPositions, kSegmentOf, kLogitRows, kSegments, kPages, kForced, kArrays };
  struct Packed {
    std::size_t begin[kArrays];  // bytes into the pinned block
    std::size_t size[kArrays];
    std::size_t total = 0;
  };

  Packed pack_sizes(const Batch& batch) const;
  void ensure(Array array, std::size_t num_bytes);
  std::byte* staging(std::size_t num_bytes);
  void fill(const Batch& batch, const KvStorage& storage, const Packed& packed, std::byte* block);

  const std::int64_t num_layers_;
  const std::int64_t experts_per_token_;
  DeviceBuffer arrays_[kArrays];
  DeviceBuffer draws_;
  // The host packs a step while the device may still read the one before.
  static constexpr int kSlots = 4;
  struct Slot {
    PinnedBuffer memory;
    Event read;
  };
  Slot slots_[kSlots];
  int slot_ = 0;
};

}  // namespace gptoss::cuda
