// From a word of MXFP4 codes, as layout.h packs it, to a lane's A fragment in bf16.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace gptoss::cuda {

// An e2m1 code's three magnitude bits, put where bf16 has the low exponent bits and the first
// mantissa bit, are the code's value times 2^-126, zero and 0.5 (a bf16 subnormal) included.
constexpr int kE2m1Exponent = 126;

// The four pairs of the fragment, each value times 2^-126: 11 integer instructions for 8 values.
__device__ __forceinline__ void expand_e2m1(std::uint32_t (&pairs)[4], std::uint32_t word) {
  constexpr std::uint32_t kCode = 0x81c081c0u;
  pairs[0] = word & kCode;
  pairs[1] = (word << 3) & kCode;
  pairs[2] = (word << 6) & kCode;
  pairs[3] =
      ((word << 1) & 0x80008000u) | ((word >> 5) & 0x01000100u) | ((word >> 4) & 0x00c000c0u);
}

__device__ __forceinline__ std::uint32_t multiply_bf16x2(std::uint32_t pair, std::uint32_t factor) {
  const __nv_bfloat162 product = __hmul2(reinterpret_cast<const __nv_bfloat162&>(pair),
                                         reinterpret_cast<const __nv_bfloat162&>(factor));
  return reinterpret_cast<const std::uint32_t&>(product);
}

// 2^exponent twice, as a factor of multiply_bf16x2; -126 <= exponent <= 127.
__host__ __device__ constexpr std::uint32_t power_of_two_bf16x2(int exponent) {
  const auto half = static_cast<std::uint32_t>(exponent + 127) << 7;
  return half << 16 | half;
}

// Byte `index` of four scales, 2^(byte - 127), exact for bytes 0 ... 254 (255, which loading
// refuses, comes out as infinity).
__device__ __forceinline__ float scale_e8m0(std::uint32_t scales, int index) {
  const std::uint32_t bits = index == 3 ? scales >> 1 : scales << (23 - 8 * index);
  return __uint_as_float(max(bits & 0x7f800000u, 0x00400000u));
}

}  // namespace gptoss::cuda
