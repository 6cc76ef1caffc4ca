// The end of a mixture-of-experts block in the tensor-core regime.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace gptoss::cuda {

struct CombineArgs {
  const float* expert_out;  // [slots][hidden]
  const std::int32_t*
      places;            // [num_rows][experts_per_token] rows of expert_out, or null: in order
  const float* weights;  // [num_rows][experts_per_token]
  std::int32_t experts_per_token;
  float* residual;  // [num_rows][hidden]
  // The next block's norm, in the same pass: xs = bf16(rms_norm(residual)). Null: none.
  const __nv_bfloat16* norm_scale;  // [hidden]
  float norm_eps;
  __nv_bfloat16* xs;  // [num_rows][hidden]
  std::int32_t num_rows;
  std::int32_t hidden;  // a multiple of 4
  // Everything but expert_out was written before the kernel before this one began, and is read
  // while that one runs.
  bool inputs_ready = false;
};

// residual += sum over choices of weight * expert output, float32, in order of choice.
void moe_combine(const CombineArgs& args, cudaStream_t stream);

}  // namespace gptoss::cuda
