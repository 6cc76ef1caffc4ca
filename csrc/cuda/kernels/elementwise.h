// What the op table needs around the kernels of a step: conversions, and ops that a step has only
// inside others.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace gptoss::cuda {

// out[r][c] = bf16(x[rows[r]][c]), zeros from cols to out_cols; rows null: the first num_rows.
struct RoundRowsArgs {
  const float* x = nullptr;  // [...][cols]
  const std::int32_t* rows = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t cols = 0;
  __nv_bfloat16* out = nullptr;  // [num_rows][out_cols]
  std::int64_t out_cols = 0;
};
void round_rows(const RoundRowsArgs& args, cudaStream_t stream);

// out[i] = float32(x[i])
void widen(const __nv_bfloat16* x, std::int64_t count, float* out, cudaStream_t stream);

// out[rows][cols] of gate_up [rows][2 cols], even gate, odd up; op_args.h.
struct SwigluRowsArgs {
  const float* gate_up = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  float limit = 0;
  float alpha = 0;
  float* out = nullptr;
};
void swiglu_rows(const SwigluRowsArgs& args, cudaStream_t stream);

// Rotates the halves of every head in place; cos_sin [rows][64].
void rotate_rows(float* x, std::int64_t rows, std::int64_t num_heads, const float* cos_sin,
                 cudaStream_t stream);

}  // namespace gptoss::cuda
