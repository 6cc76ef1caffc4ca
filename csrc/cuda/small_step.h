// The forward step for few rows: every weight is streamed once, five kernels a layer, each of which
// begins to fetch its weights before the one before it has ended. A row's logits are the same bits
// whatever else is in the batch, up to kSmallRows rows.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>

#include "cuda/device.h"
#include "cuda/device_model.h"
#include "cuda/graph_cache.h"
#include "cuda/kernels/small_kernels.h"
#include "cuda/step.h"
#include "model/kv_plan.h"

namespace gptoss::cuda {

class SmallStep {
 public:
  // Whether blocks of the device have the shared memory for it.
  static bool fits(const ModelConfig& config, const DeviceInfo& device);
  // Throws InvalidArgument naming what the kernels cannot do with this model on this device, and
  // OutOfMemory. `model` and `plan` outlive the step.
  SmallStep(const DeviceModel& model, const DeviceInfo& device, const KvPlan& plan);
  SmallStep(const SmallStep&) = delete;
  SmallStep& operator=(const SmallStep&) = delete;

  // What the constructor allocates.
  static std::size_t workspace_bytes(const ModelConfig& config);
  std::size_t workspace_bytes() const { return workspace_.num_bytes(); }
  // Rows that go through the layers together: kSmallRows, or as many as the shared memory of a
  // block has room for. Weights are read once for each such group.
  std::int32_t group_rows() const { return group_rows_; }
  // Queues the step; at most kSmallRows rows. logits: [num_logit_rows][vocab] float32 in device
  // memory. The arrays of `step` may change between calls where its addresses and counts do not:
  // from the third call of one kind on (rows, logit rows, addresses, span of positions) the step
  // is replayed as a graph.
  void run(const StepView& step, float* logits, cudaStream_t stream);

 private:
  // What a captured graph holds fast.
  struct Key {
    StepView step;
    const float* logits;

    auto fields() const {
      return std::tie(step.tokens, step.positions, step.segment_of, step.segments, step.pages,
                      step.logit_rows, step.forced_experts, step.num_rows, step.num_logit_rows,
                      step.max_position, logits);
    }
    bool operator<(const Key& other) const { return fields() < other.fields(); }
  };

  // Some of a step's rows, which go through all layers together.
  struct Group {
    StepView step;  // of these rows
    std::int32_t first_row;
    std::int32_t step_rows;  // of the whole step
    SmallBuffers buffers;
  };
  void launch_all(const StepView& step, float* logits, cudaStream_t stream) const;
  void launch_group(const Group& group, cudaStream_t stream) const;
  void launch_layer(const Group& group, std::size_t layer, cudaStream_t stream) const;

  const DeviceModel& model_;
  const KvPlan& plan_;
  DeviceInfo device_;
  std::int32_t group_rows_;
  DeviceBuffer workspace_;
  SmallBuffers buffers_;
  void* attention_workspace_ = nullptr;
  GraphCache<Key> graphs_;
};

}  // namespace gptoss::cuda
