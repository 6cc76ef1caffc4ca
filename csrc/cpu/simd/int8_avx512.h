// The intrinsics of the int8 kernels on AVX-512 with VNNI. A lane is an output row: a tile is 16
// rows. vpdpbusd multiplies unsigned by signed bytes and adds four products in int32, so a weight
// is stored with an offset added (12 for MXFP4, 128 for dense) and a block's sum starts at -offset
// * sum(x); both are exact.
//
// Activations of 15 bits are two signed bytes, code = 128 * high + low: each block is the 32 high
// ones, then the 32 low ones.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/dtype.h"
#include "cpu/kernel_table.h"
#include "cpu/simd/inline.h"
#include "model/mxfp4.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kRowTile = 16;
// Tokens and tiles of a register block: 12 float and 12 int32 accumulators of 32 registers; six
// tokens share a weight load and two tiles share an activation broadcast.
constexpr int kTokenGroup = 6;
constexpr int kPanelTiles = 2;
// Up to so many tokens of dense products four or two tiles at a time are streamed from memory. Of a
// Xeon's best read loop one and two tokens reach 88 and 85 % on one core by two, 88 and 83 % by
// four; on two cores 90 and 86 %, 89 and 84 %.
constexpr int kFourTileTokens = 0;
constexpr int kTwoTileTokens = 6;
constexpr int kFloatTokens = 8;  // the same for float32 products: 8 block sums, 8 accumulators
constexpr std::int32_t kMxfp4Offset = 12;
constexpr std::int32_t kInt8Offset = 128;
constexpr std::int64_t kInt8Group = 4;  // codes of a row side by side in a packed block

using RowFloats = __m512;  // one float32 a row
using RowInts = __m512i;   // one int32 a row
using RowBytes = __m512i;  // four bytes a row

GPTOSS_INLINE RowFloats zero_row_floats() {
  return _mm512_setzero_ps();
}
GPTOSS_INLINE RowFloats load_row_floats(const float* p) {
  return _mm512_loadu_ps(p);
}
GPTOSS_INLINE RowFloats load_row_bf16(const bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
GPTOSS_INLINE void store_row_floats(float* p, RowFloats v) {
  _mm512_storeu_ps(p, v);
}
GPTOSS_INLINE RowBytes load_row_bytes(const std::uint8_t* p) {
  return _mm512_loadu_si512(p);
}
GPTOSS_INLINE void store_row_bytes(std::uint8_t* p, RowBytes v) {
  _mm512_storeu_si512(p, v);
}
GPTOSS_INLINE RowFloats add_row_floats(RowFloats a, RowFloats b) {
  return _mm512_add_ps(a, b);
}
// acc + w * x, one rounding.
GPTOSS_INLINE RowFloats fma_row_floats(RowFloats w, float x, RowFloats acc) {
  return _mm512_fmadd_ps(w, _mm512_set1_ps(x), acc);
}
GPTOSS_INLINE RowFloats fma_row_floats(RowFloats a, RowFloats b, RowFloats acc) {
  return _mm512_fmadd_ps(a, b, acc);
}
// acc + (dot * x_scale) * w_scale: the product rounds once, the sum once.
GPTOSS_INLINE RowFloats add_scaled_dot(RowFloats acc, RowInts dot, float x_scale,
                                       RowFloats w_scale) {
  const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(x_scale));
  return _mm512_fmadd_ps(scaled, w_scale, acc);
}

// 16 bytes of every row of a row-major matrix: dword j of each row goes to out[j].
GPTOSS_INLINE void load_row_dwords(const std::uint8_t* p, std::int64_t stride, RowBytes (&out)[4]) {
  __m512i in[4];  // lane i of in[j] holds row 4 * i + j
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const std::uint8_t* row = p + j * stride;
    const auto load = [&](int i) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 4 * i * stride));
    };
    in[j] = _mm512_castsi128_si512(load(0));
    in[j] = _mm512_inserti32x4(in[j], load(1), 1);
    in[j] = _mm512_inserti32x4(in[j], load(2), 2);
    in[j] = _mm512_inserti32x4(in[j], load(3), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]);
  const __m512i b = _mm512_unpacklo_epi32(in[2], in[3]);
  const __m512i c = _mm512_unpackhi_epi32(in[0], in[1]);
  const __m512i d = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(a, b);
  out[1] = _mm512_unpackhi_epi64(a, b);
  out[2] = _mm512_unpacklo_epi64(c, d);
  out[3] = _mm512_unpackhi_epi64(c, d);
}

// Doubled e2m1 values plus kMxfp4Offset of the low (half 0) or high nibbles.
GPTOSS_INLINE RowBytes decode_nibbles(RowBytes codes, int half) {
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m512i nibbles = half == 0 ? codes : _mm512_srli_epi16(codes, 4);
  return _mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
}

// The e2m1 value of nibble `index` (0 to 7) of every row's dword.
GPTOSS_INLINE RowFloats decode_nibble_floats(RowBytes codes, int index) {
  const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                      -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
  // vpermps looks at the low four bits only.
  return _mm512_permutexvar_ps(_mm512_srlv_epi32(codes, _mm512_set1_epi32(4 * index)), table);
}

// e8m0 byte `index` (0 to 3) of every row's dword: 2^(byte - 127); 0 is the subnormal, 255 NaN.
GPTOSS_INLINE RowFloats decode_scales(RowBytes bytes, int index) {
  const __m512i byte = _mm512_and_si512(_mm512_srlv_epi32(bytes, _mm512_set1_epi32(8 * index)),
                                        _mm512_set1_epi32(255));
  const __m512i bits = _mm512_max_epu32(_mm512_slli_epi32(byte, 23), _mm512_set1_epi32(0x00400000));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(byte, _mm512_set1_epi32(255));
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000)));
}

// Where a block's sum starts, given q of the activations and its sum.
GPTOSS_INLINE std::int32_t start_of_mxfp4_dot(const std::int8_t*, std::int32_t sum) {
  return -kMxfp4Offset * sum;
}

// Exact products of a block of MXFP4 weights: kTiles tiles, kTokens tokens. x: [kTokens][32],
// kernel order; init: [kTokens], where the sums start.
template <int kTiles, int kTokens, typename Block>
GPTOSS_INLINE void dot_mxfp4_block(const Block& block, const std::int8_t* x,
                                   const std::int32_t* init, RowInts (&dot)[kTiles][kTokens]) {
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile) dot[tile][t] = _mm512_set1_epi32(init[t]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    RowBytes w[kTiles];
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile) w[tile] = block.plane(tile, i);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      std::int32_t quad;
      __builtin_memcpy(&quad, x + t * 32 + i * 4, sizeof quad);
#pragma GCC unroll 4
      for (int tile = 0; tile < kTiles; ++tile) {
        dot[tile][t] = _mm512_dpbusd_epi32(dot[tile][t], w[tile], _mm512_set1_epi32(quad));
      }
    }
  }
}

// Exact products of a block of int8 weights and 15-bit activations. x: [kTokens][32], rows of
// `stride` blocks; sums: [kTokens], likewise.
//
// Of the high bytes first, starting at -sum: shifted by 7 bits that is the correction
// -128 * sum(code) of both. With weights u = w + 128 up to 255: |sum(u * high) - sum| <=
// 32 * 255 * 127 + 32 * 16256 < 2^21, and |sum(u * low)| <= 32 * 255 * 64 < 2^19.
template <int kTiles, int kTokens, typename Block>
GPTOSS_INLINE void dot_int8_block(const Block& block, const std::int16_t* x,
                                  const std::int32_t* sums, std::int64_t stride,
                                  RowInts (&dot)[kTiles][kTokens]) {
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile) {
      dot[tile][t] = _mm512_set1_epi32(-sums[t * stride]);
    }
  }
#pragma GCC unroll 4
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      RowBytes w[kTiles];
#pragma GCC unroll 4
      for (int tile = 0; tile < kTiles; ++tile) w[tile] = block.plane(tile, i);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        std::int32_t quad;
        __builtin_memcpy(&quad, x + t * stride * 32 + half * 16 + i * 2, sizeof quad);
#pragma GCC unroll 4
        for (int tile = 0; tile < kTiles; ++tile) {
          dot[tile][t] = _mm512_dpbusd_epi32(dot[tile][t], w[tile], _mm512_set1_epi32(quad));
        }
      }
    }
    if (half == 1) break;
    // The weights of two tiles are too many to keep in registers for the low bytes.
    if constexpr (kTiles > 1) asm("" ::: "memory");
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int tile = 0; tile < kTiles; ++tile) {
        dot[tile][t] = _mm512_slli_epi32(dot[tile][t], 7);
      }
    }
  }
}

// One token: a vector holds kStripBlocks blocks of a row. Four rows share one vector of dots, whose
// partial sums of each block are added up across lanes.
constexpr std::int64_t kStripBlocks = 4;
using StripDots = __m512i;  // [kStripBlocks][4 rows]

// Exact products of a strip of blocks of four rows, `stride` bytes apart. x: [2][kStripBlocks][16],
// the elements of low nibbles, then of high ones; init: [kStripBlocks][4], -offset * sum(x), 0, 0,
// 0 for each block.
GPTOSS_INLINE StripDots dot_strip(const std::uint8_t* codes, std::int64_t stride,
                                  const std::int8_t* x, const std::int32_t* init) {
  const __m512i start = _mm512_loadu_si512(init);
  const __m512i x_low = _mm512_loadu_si512(x);
  const __m512i x_high = _mm512_loadu_si512(x + 64);
  __m512i dot[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const __m512i bytes = load_row_bytes(codes + r * stride);
    dot[r] = _mm512_dpbusd_epi32(start, decode_nibbles(bytes, 0), x_low);
    dot[r] = _mm512_dpbusd_epi32(dot[r], decode_nibbles(bytes, 1), x_high);
  }
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(dot[0], dot[1]),
                                     _mm512_unpackhi_epi32(dot[0], dot[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(dot[2], dot[3]),
                                     _mm512_unpackhi_epi32(dot[2], dot[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// dots: of the rows of a tile, four a vector; out[i]: block i of every row.
GPTOSS_INLINE void dots_by_block(const StripDots (&dots)[kRowTile / 4],
                                 RowInts (&out)[kStripBlocks]) {
  const __m512i a = _mm512_shuffle_i32x4(dots[0], dots[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(dots[2], dots[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(dots[0], dots[1], 0xee);
  const __m512i d = _mm512_shuffle_i32x4(dots[2], dots[3], 0xee);
  out[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  out[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  out[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  out[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// 32 values of a row, to be quantised.
struct FloatBlock {
  __m512 v[2];
};

GPTOSS_INLINE FloatBlock load_float_block(const float* p) {
  return {{_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}};
}
GPTOSS_INLINE FloatBlock load_float_block(const bf16* p) {
  return {{load_row_bf16(p), load_row_bf16(p + 16)}};
}
// Bits of the largest magnitude; 0x7f800000 or more when the block is not finite.
GPTOSS_INLINE std::uint32_t max_magnitude_bits(const FloatBlock& block) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  return _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(block.v[0]), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(block.v[1]), magnitude)));
}
// q = round to nearest even(x / scale) within +-127, in kernel order; returns the sum of q.
GPTOSS_INLINE std::int32_t quantize_block(const FloatBlock& block, float scale, std::int8_t* q) {
  const __m512 divisor = _mm512_set1_ps(scale);
  __m128i half[2];
#pragma GCC unroll 4
  for (int i = 0; i < 2; ++i) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_div_ps(block.v[i], divisor));
    half[i] = _mm512_cvtsepi32_epi8(_mm512_max_epi32(rounded, _mm512_set1_epi32(-127)));
  }
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set_m128i(half[1], half[0]), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
  const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}
// Codes = round to nearest even(x / scale) within +-16256; returns their sum.
GPTOSS_INLINE std::int32_t quantize_int15_block(const FloatBlock& block, float scale,
                                                std::int16_t* out) {
  const __m512 divisor = _mm512_set1_ps(scale);
  auto* bytes = reinterpret_cast<std::int8_t*>(out);
  __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int i = 0; i < 2; ++i) {
    __m512i code = _mm512_cvtps_epi32(_mm512_div_ps(block.v[i], divisor));
    code = _mm512_min_epi32(code, _mm512_set1_epi32(kInt15Max));
    code = _mm512_max_epi32(code, _mm512_set1_epi32(-kInt15Max));
    sum = _mm512_add_epi32(sum, code);
    // high is within +-127, low = code - 128 * high from -64 to 63.
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(64)), 7);
    const __m512i low = _mm512_sub_epi32(code, _mm512_slli_epi32(high, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 16 * i), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 32 + 16 * i), _mm512_cvtepi32_epi8(low));
  }
  return _mm512_reduce_add_epi32(sum);
}
GPTOSS_INLINE std::int16_t int15_code_at(const std::int16_t* block, std::int64_t index) {
  const auto* bytes = reinterpret_cast<const std::int8_t*>(block);
  return static_cast<std::int16_t>(128 * bytes[index] + bytes[32 + index]);
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
