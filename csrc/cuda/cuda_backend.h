// The CUDA backend: weights, pages and the two ways through a step, behind the engine's contract.
// small_step.h has the walk for few rows, large_step.h the one for many; both read side by side
// with cpu/backend.cc.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cuda/device.h"
#include "cuda/draws.h"
#include "cuda/kv_storage.h"
#include "cuda/large_step.h"
#include "cuda/small_step.h"
#include "cuda/step_upload.h"
#include "cuda/tensor_source.h"
#include "cuda/weights.h"

namespace gptoss::cuda {

// Tokens of a step at most: enough that every expert has a full tile of them.
constexpr std::int32_t kMaxBatchTokens = 4096;

// Makes the device current and finds out what it is, before anything else of a backend is made.
DeviceInfo open_device(int index);

class CudaBackend final : public Backend {
 public:
  // The config outlives the backend, the source need not.
  CudaBackend(const ModelConfig& config, const TensorSource& source, int device_index);
  ~CudaBackend() override;

  std::string describe() const override;
  const KvPlan& kv_plan() const override { return plan_; }
  int num_threads() const override { return 1; }
  std::int64_t max_batch_tokens() const override { return kMaxBatchTokens; }

  PageId allocate_page(KvGroup group) override;
  void free_page(KvGroup group, PageId page) noexcept override;
  void copy_page(KvGroup group, PageId from, PageId to) override;
  void read_page(KvGroup group, PageId page, std::span<std::byte> out) override;
  void write_page(KvGroup group, PageId page, std::span<const std::byte> in) override;

  void forward(const Batch& batch) override;
  bool can_draw() const override { return true; }
  std::int32_t wait_draw(DrawId draw) override;
  bool idle() noexcept override;

  BackendMemory memory() const override;
  Trace& trace() override { return trace_; }

 private:
  // Every entry: the process that made the backend, and its device.
  void enter(const char* op) const;
  float* logits_for(std::int64_t rows);
  // The rows that callers asked for, from the device to batch.logits.
  void hand_out(const Batch& batch, const float* logits);
  void copy_rows(const float* from, std::int64_t rows, float* to);
  void next_zone(Zone& zone, const char* name);
  // Steps of every kind that nobody waits for: the runtime loads a kernel when it is first queued,
  // 12 ms for those of a first prompt.
  void warm_up();

  const ModelConfig& config_;
  const DeviceInfo device_;
  const pid_t process_;
  Stream stream_;
  DeviceWeights weights_;
  KvPlan plan_;
  KvStorage storage_;
  StepUpload upload_;
  std::optional<SmallStep> small_;  // none: blocks lack the shared memory, all steps are large
  LargeStep large_;
  Draws draws_;
  DeviceBuffer logits_;
  PinnedBuffer bounce_[2];  // rows of logits on their way to pageable memory
  Event bounced_[2];
  Trace trace_;
};

}  // namespace gptoss::cuda
