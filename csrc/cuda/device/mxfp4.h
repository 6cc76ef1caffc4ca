// From two words of MXFP4 codes, as layout.h packs them, to a lane's A fragments in bf16.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/layout.h"
#include "cuda/ptx/select.h"

namespace gptoss::cuda {

// An e2m1 code's three magnitude bits, put where bf16 has the low exponent bits and the first
// mantissa bit, are the code's value times 2^-126, zero and 0.5 (a bf16 subnormal) included.
constexpr int kE2m1Exponent = 126;

// Turned left by kTurn and masked with kMxCode. Where no bit under the mask comes from past the
// end, a shift does, which the multiplier's pipe takes too.
template <int kTurn>
__device__ __forceinline__ std::uint32_t turned_code(std::uint32_t word) {
  constexpr bool kWraps = (kMxCode & ((1u << kTurn) - 1)) != 0;
  return (kWraps ? __funnelshift_l(word, word, kTurn) : word << kTurn) & kMxCode;
}

// The fragments of two words of a block (0 and 1, or 2 and 3), each value times 2^-126: 16
// instructions for 16 values.
__device__ __forceinline__ void expand_e2m1(std::uint32_t (&a0)[4], std::uint32_t (&a1)[4],
                                            std::uint32_t first, std::uint32_t second) {
  a0[0] = turned_code<mx_turn(0)>(first);
  a0[1] = turned_code<mx_turn(1)>(first);
  a0[2] = turned_code<mx_turn(2)>(first);
  a1[0] = turned_code<mx_turn(0)>(second);
  a1[1] = turned_code<mx_turn(1)>(second);
  a1[2] = turned_code<mx_turn(2)>(second);
  const std::uint32_t shared =
      ptx::select_bits(kMxShared, __funnelshift_l(second, second, kMxSharedTurn), first);
  a0[3] = turned_code<mx_turn_of_shared(0)>(shared);
  a1[3] = turned_code<mx_turn_of_shared(1)>(shared);
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

// Byte `index` of four scales, 2^(byte - 127), exact for bytes 1 ... 254; 0, which stands for a
// power below float32's normal numbers, comes out as 0, and 255, which loading refuses, as
// infinity.
__device__ __forceinline__ float scale_e8m0(std::uint32_t scales, int index) {
  const std::uint32_t bits = index == 3 ? scales >> 1 : scales << (23 - 8 * index);
  return __uint_as_float(bits & 0x7f800000u);
}

}  // namespace gptoss::cuda
