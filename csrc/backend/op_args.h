// Arguments of the ops, the same on every device: what is read, what is written, and the arithmetic
// that a kernel must do. Pointers are the device's own.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/view.h"

namespace gptoss {

enum class Epilogue {
  kStore,  // out = product + bias
  kAdd,    // out += product + bias (the residual stream)
};

struct EmbedArgs {
  const std::int32_t* tokens;    // [num_tokens]
  MatrixView<const bf16> table;  // [vocab][hidden]
  MatrixView<float> out;         // [num_tokens][hidden]
};

// out = x / sqrt(mean(x^2) + eps) * scale, float32 (the mean too).
struct RmsNormArgs {
  MatrixView<const float> x;  // [num_tokens][hidden]
  const bf16* scale;          // [hidden]
  float eps;
  MatrixView<float> out;  // [num_tokens][hidden]
};

// Dense product with bf16 weights, float32 activations and accumulation.
struct LinearBf16Args {
  MatrixView<const float> x;      // [num_tokens][cols]
  MatrixView<const bf16> weight;  // [rows][cols]
  const bf16* bias;               // [rows] or null
  Epilogue epilogue;
  MatrixView<float> out;  // [num_tokens][rows]
};

// gate = min(x[2i], limit), up = clamp(x[2i + 1], -limit, limit);
// out[i] = gate * sigmoid(alpha * gate) * (up + 1). NaN stays NaN.
struct SwigluArgs {
  MatrixView<const float> gate_up;  // [rows][2 * cols]
  float limit;
  float alpha;
  MatrixView<float> out;  // [rows][cols]
};

// Rotates halves of each head in place: (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin).
struct RopeArgs {
  MatrixView<float> x;  // [num_tokens][num_heads * 64]
  std::int64_t num_heads;
  MatrixView<const float> cos_sin;  // [num_tokens][64]: 32 cosines, then 32 sines
};

// Top-k by logit, ties to the lower index, softmax over the chosen; NaN logits give NaN weights and
// valid expert ids.
struct RouterTopkArgs {
  MatrixView<const float> logits;  // [num_tokens][num_experts]
  std::int64_t experts_per_token;
  std::int32_t* expert_ids;    // [num_tokens][experts_per_token]
  float* weights;              // [num_tokens][experts_per_token]
  const std::int32_t* forced;  // [num_tokens][experts_per_token] or null: use these experts
};

// out += sum over choices of weight * expert output, in order of choice, float32.
struct MoeCombineArgs {
  MatrixView<const float> expert_out;  // [num_tokens * experts_per_token][hidden]
  const float* weights;                // [num_tokens][experts_per_token]
  std::int64_t experts_per_token;
  MatrixView<float> out;  // [num_tokens][hidden]
};

}  // namespace gptoss
