// One row's RMSNorm by a block whose threads hold four channels at a time, thread t those of
// vector t + i * kRowThreads. Sums run in one order, whatever the batch.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/reduce.h"

namespace gptoss::cuda {

constexpr int kRowThreads = 256;

// The sum over the block's threads, the same bits in each. `scratch`: one float a warp.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  constexpr int kWarps = kRowThreads / 32;
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();  // the warps' sums are there
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += scratch[i];
  return sum;
}

__device__ __forceinline__ void store_four(float* out, float4 v) {
  *reinterpret_cast<float4*>(out) = v;
}
__device__ __forceinline__ void store_four(__nv_bfloat16* out, float4 v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
  *reinterpret_cast<uint2*>(out) = make_uint2(reinterpret_cast<const std::uint32_t&>(low),
                                              reinterpret_cast<const std::uint32_t&>(high));
}
__device__ __forceinline__ float4 load_four(const __nv_bfloat16* in) {
  const uint2 v = *reinterpret_cast<const uint2*>(in);
  const float2 low = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(v.x));
  const float2 high = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(v.y));
  return make_float4(low.x, low.y, high.x, high.y);
}

__device__ __forceinline__ float squares(float4 v) {
  return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}

__device__ __forceinline__ float inverse_rms(float square_sum, float eps, std::int32_t hidden) {
  return 1.0f / sqrtf(square_sum / static_cast<float>(hidden) + eps);
}
__device__ __forceinline__ float4 scaled(float4 v, float inverse, float4 scale) {
  return make_float4(v.x * inverse * scale.x, v.y * inverse * scale.y, v.z * inverse * scale.z,
                     v.w * inverse * scale.w);
}

// `row` (global or shared, written by this thread's own vectors) to `out`.
template <typename Out>
__device__ __forceinline__ void write_normalised(const float* row, float square_sum, float eps,
                                                 std::int32_t hidden, const __nv_bfloat16* scale,
                                                 Out* out) {
  const float inverse = inverse_rms(square_sum, eps, hidden);
  for (std::int32_t i = threadIdx.x; i < hidden / 4; i += kRowThreads) {
    const float4 v = *reinterpret_cast<const float4*>(row + 4 * i);
    store_four(out + 4 * i, scaled(v, inverse, load_four(scale + 4 * i)));
  }
}

}  // namespace gptoss::cuda
