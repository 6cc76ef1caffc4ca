// The online softmax of attention, in powers of two: scores are kept as the products q.k, and a
// weight is 2^(kScoreScale * score - max) with max in the same powers. A NaN score may be missing
// from the max, but its weight is NaN, and so is all that it meets.
#pragma once

#include <cuda_bf16.h>

#include <cfloat>
#include <cstdint>

#include "cuda/ptx/math.h"

namespace gptoss::cuda {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kScoreScale = 0.125f * kLog2E;  // 1 / sqrt(64), and from e to 2
constexpr float kMinusInfinity = -__builtin_inff();

// What is subtracted in the exponent: -inf - -inf would be NaN where no key has been seen yet.
__device__ __forceinline__ float exponent_base(float max) {
  return max == kMinusInfinity ? 0.0f : max;
}

// How far a row's scores, as exponents of two, may outgrow the maximum that its weights are
// relative to before that is raised: weights stay below 2^8, where bf16 is as exact as below 1, and
// sums are seldom rescaled.
constexpr float kMaxSlack = 8.0f;

// Two weights as an operand of the next product, rounded to nearest even; first in the low half.
__device__ __forceinline__ std::uint32_t pack_bf16x2(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

// Maximum and sum over the four lanes that share the rows of an mma fragment; the same bits in
// each.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// A sink as an exponent of two; finite, since it is subtracted from itself when it is the maximum.
__device__ __forceinline__ float sink_exponent(__nv_bfloat16 sink) {
  const float exponent = __bfloat162float(sink) * kLog2E;
  return exponent > FLT_MAX ? FLT_MAX : exponent;
}

// The sink as one more term of a row's sum: what the row's products are multiplied by.
__device__ __forceinline__ float sink_factor(__nv_bfloat16 sink, float max, float sum) {
  const float exponent = sink_exponent(sink);
  const float base = exponent_base(fmaxf(exponent, max));
  const float factor = ptx::exp2_approx(max - base);
  return factor / fmaf(factor, sum, ptx::exp2_approx(exponent - base));
}

}  // namespace gptoss::cuda
