// Tokens drawn on the device: what is kept of them, and how the host learns them.
//
// Threads: `prepare` and `queue` under the backend's lock; `wait` from anywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/op_table.h"
#include "cuda/device.h"
#include "cuda/graph_cache.h"
#include "cuda/kernels/draw_tokens.h"

namespace gptoss::cuda {

class Draws {
 public:
  explicit Draws(std::int64_t vocab);
  // Of device memory that the constructor allocates.
  static std::size_t planned_bytes(std::int64_t vocab);

  // Descriptions of a batch's draws, to be carried to the device, and their numbers in
  // batch.draws. Valid until the next call.
  std::span<const DrawRow> prepare(const Batch& batch, cudaStream_t stream);
  // Draws what was prepared from the batch's logits; `rows` is the descriptions' copy.
  void queue(const float* logits, const DrawRow* rows, cudaStream_t stream);
  std::int32_t wait(DrawId draw) const;
  // What was queued last is done, or failed.
  bool idle() const noexcept;

  const std::int32_t* tokens() const { return tokens_.as<std::int32_t>(); }
  std::size_t num_bytes() const;

 private:
  // Rows that one launch takes.
  static constexpr std::int32_t kMaxRows = 256;
  using Banned = std::shared_ptr<const std::vector<std::int32_t>>;
  const std::uint32_t* allowed(const Banned& banned, cudaStream_t stream);
  void launch(const float* logits, const DrawRow* rows, cudaStream_t stream) const;

  const std::int64_t vocab_;
  DeviceBuffer tokens_;   // [kDrawsKept]
  PinnedBuffer results_;  // [kDrawsKept], high half: the draw's number + 1
  DeviceBuffer workspace_;
  Event done_;  // what was queued last
  DrawId next_ = 0;
  std::vector<DrawRow> rows_;
  DrawKinds kinds_;
  struct Mask {
    Banned banned;
    DeviceBuffer bits;
  };
  std::vector<Mask> masks_;
  // Of what was queued before in the same way.
  struct Key {
    const float* logits;
    const DrawRow* rows;
    std::int32_t count;
    DrawKinds kinds;
    auto operator<=>(const Key&) const = default;
  };
  GraphCache<Key> graphs_;
};

// The op: rows anywhere in memory.
void draw_rows(const DrawTokensOpArgs& args, cudaStream_t stream);

}  // namespace gptoss::cuda
