// MXFP4 words of layout.h to the A fragments of tensor-core products, scales applied: exact in bf16
// for every scale byte up to 254 (what bf16 cannot hold becomes infinite, as in float32).
#pragma once

#include <cstdint>

#include "cuda/device/mxfp4.h"

namespace gptoss::cuda {

// Expanded codes are 2^-126 of their values, so they take 2^(scale - 1): a bf16 number up to scale
// 128. Where a byte of the scale word is larger, a second product follows.
constexpr std::uint32_t kMaybeLargeScales = 0x80808080u;

// Byte kIndex of a record's scale word in both halves of a word.
template <int kIndex>
__device__ __forceinline__ std::uint32_t scale_pair(std::uint32_t scales) {
  return __byte_perm(scales, 0, 0x4040 + kIndex * 0x0101);
}

// 2^(scale - 1) twice, from the scale in both halves of a word, at most 128: one multiply-add.
__device__ __forceinline__ std::uint32_t scale_factor(std::uint32_t pair) {
  return pair * 128 + power_of_two_bf16x2(-1);
}

// The fragments of a record's 64 columns: its words of this lane and the scale word of its rows.
// With kLargeScales bytes may be above 128.
template <bool kLargeScales>
__device__ __forceinline__ void decode_mxfp4(const uint4& codes, std::uint32_t scales,
                                             std::uint32_t (&a)[4][4]) {
  expand_e2m1(a[0], a[1], codes.x, codes.y);
  expand_e2m1(a[2], a[3], codes.z, codes.w);
  // Rows g and g + 8 of the first 32 columns, then of the others: step s and element i take
  // factors[s / 2][i % 2].
  std::uint32_t pairs[2][2] = {{scale_pair<0>(scales), scale_pair<2>(scales)},
                               {scale_pair<1>(scales), scale_pair<3>(scales)}};
  if constexpr (kLargeScales) {
    std::uint32_t rests[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t& pair = pairs[i / 2][i % 2];
      const std::uint32_t limited = __vminu2(pair, 0x00800080u);
      rests[i / 2][i % 2] = (pair - limited) * 128 + power_of_two_bf16x2(0);
      pair = limited;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      a[i / 4][i % 4] = multiply_bf16x2(a[i / 4][i % 4], rests[i / 8][i % 2]);
    }
  }
  std::uint32_t factors[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) factors[i / 2][i % 2] = scale_factor(pairs[i / 2][i % 2]);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    a[i / 4][i % 4] = multiply_bf16x2(a[i / 4][i % 4], factors[i / 8][i % 2]);
  }
}

__device__ __forceinline__ void decode_mxfp4(const uint4& codes, std::uint32_t scales,
                                             std::uint32_t (&a)[4][4]) {
  if ((scales & kMaybeLargeScales) == 0) {
    decode_mxfp4<false>(codes, scales, a);
  } else {
    decode_mxfp4<true>(codes, scales, a);
  }
}

}  // namespace gptoss::cuda
