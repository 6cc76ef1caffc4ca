// The intrinsics of the int8 kernels on AVX2 with FMA. A lane is an output row: a tile is 8 rows.
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in saturating int16: MXFP4 weights
// carry an offset of 12, so a pair is at most 2 * 24 * 127 = 6096 and nothing saturates. Dense
// weights are widened to int16, activations of 15 bits are int16, and vpmaddwd adds pairs in int32.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/dtype.h"
#include "cpu/kernel_table.h"
#include "cpu/simd/inline.h"
#include "model/mxfp4.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kRowTile = 8;
// Tokens of a register block: 6 float and 6 integer accumulators of 16 registers.
constexpr int kTokenGroup = 6;
constexpr int kPanelTiles = 1;
// Up to so many tokens of dense products four or two tiles at a time are streamed from memory.
constexpr int kFourTileTokens = 1;
constexpr int kTwoTileTokens = 3;
constexpr int kFloatTokens = 4;
constexpr std::int32_t kMxfp4Offset = 12;
constexpr std::int32_t kInt8Offset = 0;
constexpr std::int64_t kInt8Group = 2;  // codes of a row side by side in a packed block

using RowFloats = __m256;  // one float32 a row
using RowInts = __m256i;   // one int32 a row
using RowBytes = __m256i;  // four bytes a row

GPTOSS_INLINE RowFloats zero_row_floats() {
  return _mm256_setzero_ps();
}
GPTOSS_INLINE RowFloats load_row_floats(const float* p) {
  return _mm256_loadu_ps(p);
}
GPTOSS_INLINE RowFloats load_row_bf16(const bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
GPTOSS_INLINE void store_row_floats(float* p, RowFloats v) {
  _mm256_storeu_ps(p, v);
}
GPTOSS_INLINE RowBytes load_row_bytes(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
GPTOSS_INLINE void store_row_bytes(std::uint8_t* p, RowBytes v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
GPTOSS_INLINE RowFloats add_row_floats(RowFloats a, RowFloats b) {
  return _mm256_add_ps(a, b);
}
// acc + w * x, one rounding.
GPTOSS_INLINE RowFloats fma_row_floats(RowFloats w, float x, RowFloats acc) {
  return _mm256_fmadd_ps(w, _mm256_set1_ps(x), acc);
}
GPTOSS_INLINE RowFloats fma_row_floats(RowFloats a, RowFloats b, RowFloats acc) {
  return _mm256_fmadd_ps(a, b, acc);
}
// acc + (dot * x_scale) * w_scale: the product rounds once, the sum once.
GPTOSS_INLINE RowFloats add_scaled_dot(RowFloats acc, RowInts dot, float x_scale,
                                       RowFloats w_scale) {
  const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(x_scale));
  return _mm256_fmadd_ps(scaled, w_scale, acc);
}

// 16 bytes of every row of a row-major matrix: dword j of each row goes to out[j].
GPTOSS_INLINE void load_row_dwords(const std::uint8_t* p, std::int64_t stride, RowBytes (&out)[4]) {
  __m256i in[4];  // lane i of in[j] holds row 4 * i + j
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto* low = reinterpret_cast<const __m128i*>(p + j * stride);
    const auto* high = reinterpret_cast<const __m128i*>(p + (4 + j) * stride);
    in[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)),
                                    _mm_loadu_si128(high), 1);
  }
  const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]);
  const __m256i b = _mm256_unpacklo_epi32(in[2], in[3]);
  const __m256i c = _mm256_unpackhi_epi32(in[0], in[1]);
  const __m256i d = _mm256_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm256_unpacklo_epi64(a, b);
  out[1] = _mm256_unpackhi_epi64(a, b);
  out[2] = _mm256_unpacklo_epi64(c, d);
  out[3] = _mm256_unpackhi_epi64(c, d);
}

// Doubled e2m1 values plus kMxfp4Offset of the low (half 0) or high nibbles.
GPTOSS_INLINE RowBytes decode_nibbles(RowBytes codes, int half) {
  const __m256i table = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m256i nibbles = half == 0 ? codes : _mm256_srli_epi16(codes, 4);
  return _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
}

// The e2m1 value of nibble `index` (0 to 7) of every row's dword.
GPTOSS_INLINE RowFloats decode_nibble_floats(RowBytes codes, int index) {
  const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
  const __m256i nibble = _mm256_srlv_epi32(codes, _mm256_set1_epi32(4 * index));
  // vpermps looks at the low three bits only; the fourth is the sign.
  const __m256 sign =
      _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(nibble, 28)), _mm256_set1_ps(-0.0f));
  return _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, nibble), sign);
}

// e8m0 byte `index` (0 to 3) of every row's dword: 2^(byte - 127); 0 is the subnormal, 255 NaN.
GPTOSS_INLINE RowFloats decode_scales(RowBytes bytes, int index) {
  const __m256i byte = _mm256_and_si256(_mm256_srlv_epi32(bytes, _mm256_set1_epi32(8 * index)),
                                        _mm256_set1_epi32(255));
  const __m256i bits = _mm256_max_epu32(_mm256_slli_epi32(byte, 23), _mm256_set1_epi32(0x00400000));
  const __m256i nan = _mm256_cmpeq_epi32(byte, _mm256_set1_epi32(255));
  return _mm256_castsi256_ps(
      _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi32(0x7fc00000))));
}

// Keeps the compiler from regrouping integer sums, which would keep all terms alive and spill.
GPTOSS_INLINE void add_in_order(__m256i& sum) {
  asm("" : "+x"(sum));
}

// Where a block's sum starts, given q of the activations: for MXFP4 two int16, -offset times the
// sums of bytes 0 1 and 2 3 of every dword. Sums with offset may wrap in int16; the true ones, at
// most 16 * 12 * 127 = 24384, come out exact.
GPTOSS_INLINE std::int32_t start_of_mxfp4_dot(const std::int8_t* q, std::int32_t) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(-kMxfp4Offset)));
}

// Exact products of a block of MXFP4 weights: kTiles tiles, kTokens tokens. x: [kTokens][32],
// kernel order; init: [kTokens], where the sums start.
template <int kTiles, int kTokens, typename Block>
GPTOSS_INLINE void dot_mxfp4_block(const Block& block, const std::int8_t* x,
                                   const std::int32_t* init, RowInts (&dot)[kTiles][kTokens]) {
  static_assert(kTiles == 1);
  __m256i pairs[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) pairs[t] = _mm256_set1_epi32(init[t]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i w = block.plane(0, i);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      std::int32_t quad;
      __builtin_memcpy(&quad, x + t * 32 + i * 4, sizeof quad);
      const __m256i products = _mm256_maddubs_epi16(w, _mm256_set1_epi32(quad));
      pairs[t] = _mm256_add_epi16(pairs[t], products);
      add_in_order(pairs[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    dot[0][t] = _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1));
  }
}

// Exact products of a block of int8 weights and 15-bit activations. x: [kTokens][32], rows of
// `stride` blocks.
template <int kTiles, int kTokens, typename Block>
GPTOSS_INLINE void dot_int8_block(const Block& block, const std::int16_t* x, const std::int32_t*,
                                  std::int64_t stride, RowInts (&dot)[kTiles][kTokens]) {
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile) dot[tile][t] = _mm256_setzero_si256();
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    __m256i w[kTiles];
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto* bytes = reinterpret_cast<const __m128i*>(block.codes(tile) + i * kRowTile * 2);
      w[tile] = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes));
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      std::int32_t pair;
      __builtin_memcpy(&pair, x + t * stride * 32 + i * 2, sizeof pair);
#pragma GCC unroll 4
      for (int tile = 0; tile < kTiles; ++tile) {
        const __m256i products = _mm256_madd_epi16(w[tile], _mm256_set1_epi32(pair));
        dot[tile][t] = _mm256_add_epi32(dot[tile][t], products);
        add_in_order(dot[tile][t]);
      }
    }
  }
}

// One token: a vector holds kStripBlocks blocks of a row. Four rows share one vector of dots, whose
// partial sums of each block are added up across lanes.
constexpr std::int64_t kStripBlocks = 2;
using StripDots = __m256i;  // [kStripBlocks][4 rows]

// Exact products of a strip of blocks of four rows, `stride` bytes apart. x: [2][kStripBlocks][16],
// the elements of low nibbles, then of high ones; init: [kStripBlocks][4], -offset * sum(x), 0, 0,
// 0 for each block. Two pairs are at most 2 * 6096, which int16 holds.
GPTOSS_INLINE StripDots dot_strip(const std::uint8_t* codes, std::int64_t stride,
                                  const std::int8_t* x, const std::int32_t* init) {
  const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(init));
  const __m256i x_low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i x_high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32));
  __m256i dot[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const __m256i bytes = load_row_bytes(codes + r * stride);
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(decode_nibbles(bytes, 0), x_low),
                                           _mm256_maddubs_epi16(decode_nibbles(bytes, 1), x_high));
    dot[r] = _mm256_add_epi32(start, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(dot[0], dot[1]),
                                     _mm256_unpackhi_epi32(dot[0], dot[1]));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(dot[2], dot[3]),
                                     _mm256_unpackhi_epi32(dot[2], dot[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

// dots: of the rows of a tile, four a vector; out[i]: block i of every row.
GPTOSS_INLINE void dots_by_block(const StripDots (&dots)[kRowTile / 4],
                                 RowInts (&out)[kStripBlocks]) {
  out[0] = _mm256_permute2x128_si256(dots[0], dots[1], 0x20);
  out[1] = _mm256_permute2x128_si256(dots[0], dots[1], 0x31);
}

// 32 values of a row, to be quantised.
struct FloatBlock {
  __m256 v[4];
};

GPTOSS_INLINE FloatBlock load_float_block(const float* p) {
  return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8), _mm256_loadu_ps(p + 16),
           _mm256_loadu_ps(p + 24)}};
}
GPTOSS_INLINE FloatBlock load_float_block(const bf16* p) {
  return {{load_row_bf16(p), load_row_bf16(p + 8), load_row_bf16(p + 16), load_row_bf16(p + 24)}};
}
// Bits of the largest magnitude; 0x7f800000 or more when the block is not finite.
GPTOSS_INLINE std::uint32_t max_magnitude_bits(const FloatBlock& block) {
  __m256i largest = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    largest = _mm256_max_epu32(
        largest, _mm256_and_si256(_mm256_castps_si256(block.v[i]), _mm256_set1_epi32(0x7fffffff)));
  }
  __m128i four =
      _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(four));
}
GPTOSS_INLINE std::int32_t add_lanes(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}
// q = round to nearest even(x / scale) within +-127, in kernel order; returns the sum of q.
GPTOSS_INLINE std::int32_t quantize_block(const FloatBlock& block, float scale, std::int8_t* q) {
  const __m256 divisor = _mm256_set1_ps(scale);
  __m256i ints[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) ints[i] = _mm256_cvtps_epi32(_mm256_div_ps(block.v[i], divisor));
  // The packs work on halves of 128 bits: dwords come out as a0 b0 c0 d0 a1 b1 c1 d1.
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(ints[0], ints[1]),
                                            _mm256_packs_epi32(ints[2], ints[3]));
  const __m256i natural = _mm256_max_epi8(
      _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)),
      _mm256_set1_epi8(-127));
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_shuffle_epi8(natural, order));
  const __m256i sums =
      _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), natural), _mm256_set1_epi16(1));
  return add_lanes(sums);
}
// Codes = round to nearest even(x / scale) within +-16256; returns their sum.
GPTOSS_INLINE std::int32_t quantize_int15_block(const FloatBlock& block, float scale,
                                                std::int16_t* out) {
  const __m256 divisor = _mm256_set1_ps(scale);
  __m256i sums = _mm256_setzero_si256();
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    // The pack works on halves of 128 bits: quarters come out as a0 b0 a1 b1.
    const __m256i packed =
        _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_div_ps(block.v[2 * i], divisor)),
                           _mm256_cvtps_epi32(_mm256_div_ps(block.v[2 * i + 1], divisor)));
    __m256i codes = _mm256_permute4x64_epi64(packed, 0xd8);
    codes = _mm256_min_epi16(codes, _mm256_set1_epi16(kInt15Max));
    codes = _mm256_max_epi16(codes, _mm256_set1_epi16(-kInt15Max));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16 * i), codes);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(codes, _mm256_set1_epi16(1)));
  }
  return add_lanes(sums);
}
GPTOSS_INLINE std::int16_t int15_code_at(const std::int16_t* block, std::int64_t index) {
  return block[index];
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
