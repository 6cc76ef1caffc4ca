// The bulk tensor copy engine (sm_90): boxes of a tensor map, global to shared memory, completing
// on an mbarrier (mbarrier.h). What lies outside the tensor arrives as zeros and counts as bytes.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace gptoss::cuda::ptx {

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Coordinates in elements, innermost first; `to` aligned as the map's swizzle asks.
__device__ __forceinline__ void tma_load(std::uint32_t to, const CUtensorMap* map, std::int32_t x,
                                         std::int32_t y, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void tma_load(std::uint32_t to, const CUtensorMap* map, std::int32_t x,
                                         std::int32_t y, std::int32_t z, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

}  // namespace gptoss::cuda::ptx
