// A batch on its way to the device: the arrays of step.h, packed into one block, which a kernel
// spreads to addresses that stay the same from step to step. Small blocks travel as the kernel's
// argument, large ones lie in pinned host memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/batch.h"
#include "cuda/device.h"
#include "cuda/kernels/draw_tokens.h"
#include "cuda/kernels/spread_step.h"
#include "cuda/kv_storage.h"
#include "cuda/step.h"

namespace gptoss::cuda {

class StepUpload {
 public:
  StepUpload(std::int64_t max_rows, std::int64_t num_layers, std::int64_t experts_per_token);
  // Of device memory that the constructor allocates.
  static std::size_t planned_bytes(std::int64_t max_rows);

  // What a batch's pages and tokens stand for, and its draws.
  struct Context {
    const KvStorage& storage;
    const std::int32_t* drawn;  // tokens by draw, device memory
    std::span<const DrawRow> draws;
  };
  // Queues the batch; the view holds once the stream is there. Rows past the batch's, up to
  // kSmallRows, have token and position -1. Addresses change only where a batch needs more room
  // than any before; those who keep them compare.
  StepView upload(const Batch& batch, const Context& context, cudaStream_t stream);

  // The batch's draws on the device.
  const DrawRow* draws() const { return arrays_[kDraws].as<const DrawRow>(); }
  std::size_t num_bytes() const;

 private:
  // The arrays of a step, in the order in which they are packed.
  enum Array {
    kTokens,
    kPositions,
    kSegmentOf,
    kLogitRows,
    kSegments,
    kPages,
    kForced,
    kDraws,
    kArrays
  };
  using Sizes = std::array<std::size_t, kArrays>;
  static Sizes initial_sizes(std::int64_t max_rows);
  struct Packed {
    std::size_t begin[kArrays];  // bytes into the pinned block
    std::size_t size[kArrays];
    std::size_t total = 0;
  };

  Packed pack_sizes(const Batch& batch, std::size_t num_draws) const;
  void ensure(Array array, std::size_t num_bytes);
  std::byte* staging(std::size_t num_bytes);
  void spread(const Packed& packed, const std::byte* block, const std::int32_t* drawn,
              cudaStream_t stream);
  void fill(const Batch& batch, const Context& context, const Packed& packed, std::byte* block);

  const std::int64_t num_layers_;
  const std::int64_t experts_per_token_;
  DeviceBuffer arrays_[kArrays];
  // The host packs a step while the device may still read the one before.
  static constexpr int kSlots = 4;
  struct Slot {
    PinnedBuffer memory;
    Event read;
  };
  Slot slots_[kSlots];
  int slot_ = 0;
  std::vector<std::byte> small_;
};

}  // namespace gptoss::cuda
