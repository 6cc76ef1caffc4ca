// Transposes an 8 x 8 matrix of 16-bit elements held by a warp: in, lane (g, q) has row g, columns
// 2 q and 2 q + 1; out, the same of the transposed.
#pragma once

#include <cstdint>

namespace gptoss::cuda::ptx {

__device__ __forceinline__ std::uint32_t movmatrix_transpose(std::uint32_t pair) {
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

}  // namespace gptoss::cuda::ptx
