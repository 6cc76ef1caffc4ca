// Sums and maxima across the lanes of a warp, in a fixed order: every lane gets the same bits.
#pragma once

namespace gptoss::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Over groups of kLanes consecutive lanes (a power of two).
template <int kLanes = 32>
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// NaN if one is among them.
template <int kLanes = 32>
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value || other != other ? other : value;
  }
  return value;
}

}  // namespace gptoss::cuda
