// gpt-oss's gated activation: gate * sigmoid(alpha * gate) * (up + 1), both clamped to `limit`.
#pragma once

namespace gptoss::cuda {

__device__ __forceinline__ float swiglu(float gate, float up, float limit, float alpha) {
  gate = gate > limit ? limit : gate;  // NaN stays NaN
  up = up > limit ? limit : up < -limit ? -limit : up;
  return gate / (1.0f + expf(-alpha * gate)) * (up + 1.0f);
}

}  // namespace gptoss::cuda
