// A forward step of more than kSmallRows rows: every product on the tensor cores, tokens sorted by
// expert. Results are the same every time; a row's depend on its sequence and on how many rows the
// batch has (which chooses the kernels and the order of their sums), not on what those are.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "base/trace.h"
#include "cuda/device.h"
#include "cuda/device_model.h"
#include "cuda/kernels/router_topk.h"
#include "cuda/step.h"
#include "model/kv_plan.h"

namespace gptoss::cuda {

class LargeStep {
 public:
  // The model and the plan outlive the step. Throws OutOfMemory.
  LargeStep(const DeviceModel& model, const DeviceInfo& device, const KvPlan& plan,
            std::int32_t max_rows);

  // What the constructor allocates.
  static std::size_t workspace_bytes(const ModelConfig& config, std::int32_t max_rows);
  std::size_t workspace_bytes() const { return memory_.num_bytes(); }
  std::int32_t max_rows() const { return max_rows_; }

  // At most max_rows rows; logits [num_logit_rows][vocab] float32, device memory. An enabled trace
  // counts the experts that every layer touches, and waits for each.
  void run(const StepView& step, float* logits, cudaStream_t stream, Trace* trace = nullptr);

 private:
  // Views of the workspace. What attention needs and what the experts need share memory.
  struct Buffers {
    float* residual;             // [max_rows][hidden]
    __nv_bfloat16* xs;           // [max_rows][hidden] normed, operand of the next product
    float* qkv;                  // [max_rows][q + 2 kv], RowOrder::kRope
    __nv_bfloat16* q;            // [max_rows][q]
    __nv_bfloat16* attended;     // [max_rows][q]
    std::int32_t* expert_ids;    // [slots]
    float* expert_weights;       // [slots]
    std::int32_t* places;        // [slots]
    TokenTile* tiles;            // [expert_tiles_bound + 1]
    std::int32_t* num_tiles;     // [1 + kTileCounters]
    __nv_bfloat16* sorted;       // [slots][hidden]
    __nv_bfloat16* activations;  // [slots][intermediate]
    float* expert_out;           // [slots][hidden]
    __nv_bfloat16* logit_rows;   // [kLogitRows][hidden]
    void* attention;             // attention_workspace_bytes
  };
  static std::size_t lay_out(const ModelConfig& config, std::int32_t max_rows, std::uint8_t* base,
                             Buffers& buffers);

  void attention_block(const StepView& step, std::size_t layer, cudaStream_t stream);
  void moe_block(const StepView& step, std::size_t layer, cudaStream_t stream);
  void write_logits(const StepView& step, float* logits, cudaStream_t stream);
  // Different experts of the layer that was queued last.
  std::int64_t touched_experts(std::int32_t num_rows, cudaStream_t stream) const;

  const DeviceModel& model_;
  DeviceInfo device_;
  const KvPlan& plan_;
  std::int32_t max_rows_;
  DeviceBuffer memory_;
  Buffers buffers_;
};

}  // namespace gptoss::cuda
