// rms_norm in the tensor-core regime: its output is the next product's operand.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace gptoss::cuda {

template <typename Out>
struct RowNormArgs {
  const float* x;              // [rows of x][hidden]
  const std::int32_t* rows;    // [num_rows] of x, or null: the first num_rows
  const __nv_bfloat16* scale;  // [hidden]
  float eps;
  Out* out;  // [num_rows][hidden], float or __nv_bfloat16
  std::int32_t num_rows;
  std::int32_t hidden;  // a multiple of 4
};

// out = x / sqrt(mean(x^2) + eps) * scale in float32, rounded once to Out.
template <typename Out>
void rms_norm(const RowNormArgs<Out>& args, cudaStream_t stream);

}  // namespace gptoss::cuda
