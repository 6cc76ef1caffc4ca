// The integer side of MXFP4 products on AMX levels, with VNNI: blocks of bf16 activations, and
// exact products of MXFP4 codes with the two bytes of theirs, for single tokens.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/dtype.h"
#include "cpu/kernel_table.h"
#include "cpu/simd/inline.h"
#include "model/mxfp4.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kAmxStripBlocks = 4;  // blocks of a row in a vector of codes
constexpr int kAmxLanes = 16;                // rows at a time

// One token: of each strip of blocks the high bytes of its even columns, of its odd ones, the low
// bytes of both, 64 each. Of each block, what goes off a dot and what then multiplies it.
struct TokenBytes {
  const std::int8_t* lines;
  const std::int32_t* offsets;  // 12 * sum of the codes
  const float* halves;          // half of the scale: the weights' codes are doubled
};

// Which bytes of a strip its first blocks are.
GPTOSS_INLINE __mmask64 first_blocks(std::int64_t count) {
  return (__mmask64{1} << 16 * count) - 1u;
}

// 32 floats of one token, as bf16 and bytes.
struct Bf16Block {
  __m512i values;  // words in order
  __m128i bytes[4];
  __m256i high;  // bytes in order
  __m256i low;
  float scale;
  std::int32_t sum;
};

// The unit is 2^-11 of the largest magnitude's power of two: codes are within +-4096. Rounded to
// nearest even to a multiple of it, then to eight significant bits.
GPTOSS_INLINE Bf16Block quantize_bf16_block(const float* p) {
  const __m512 x[2] = {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)};
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const std::uint32_t largest = _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x[0]), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(x[1]), magnitude)));
  Bf16Block out{};
  if (largest >= 0x7f800000u) {
    out.values = _mm512_set1_epi16(0x7fc0);
    out.scale = __builtin_nanf("");
    return out;
  }
  const int exponent = static_cast<int>(largest >> 23) - 11;  // of the unit, biased
  const int unit = exponent < 1 ? 1 : exponent;               // the smallest normal at least
  const float scale = std::bit_cast<float>(static_cast<std::uint32_t>(unit) << 23);
  const __m512 inverse =
      _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>((254u - unit) << 23)));
  __m512i code[2];
  __m512 value[2];
  GPTOSS_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
    // To eight significant bits: the bits of a float above the lower sixteen.
    const __m512i bits = _mm512_castps_si512(_mm512_cvtepi32_ps(whole));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_and_si512(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))),
                         _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    code[i] = _mm512_cvtps_epi32(_mm512_castsi512_ps(rounded));
    value[i] = _mm512_mul_ps(_mm512_castsi512_ps(rounded), _mm512_set1_ps(scale));
  }
  // The upper halves of both, in order.
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(value[0]), 16));
  const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(value[1]), 16));
  out.values = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  GPTOSS_UNROLL
  for (int parity = 0; parity < 2; ++parity) {
    const __m512i at = _mm512_add_epi32(even, _mm512_set1_epi32(parity));
    const __m512i c = _mm512_permutex2var_epi32(code[0], at, code[1]);
    // high within +-32, low from -64 to 63.
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(c, _mm512_set1_epi32(64)), 7);
    out.bytes[parity] = _mm512_cvtepi32_epi8(upper);
    out.bytes[2 + parity] = _mm512_cvtepi32_epi8(_mm512_sub_epi32(c, _mm512_slli_epi32(upper, 7)));
  }
  const __m128i first = _mm_unpacklo_epi8(out.bytes[0], out.bytes[1]);
  out.high = _mm256_set_m128i(_mm_unpackhi_epi8(out.bytes[0], out.bytes[1]), first);
  const __m128i second = _mm_unpacklo_epi8(out.bytes[2], out.bytes[3]);
  out.low = _mm256_set_m128i(_mm_unpackhi_epi8(out.bytes[2], out.bytes[3]), second);
  out.sum = _mm512_reduce_add_epi32(_mm512_add_epi32(code[0], code[1]));
  out.scale = largest == 0 ? 0.0f : scale;
  return out;
}

// Bytes that each lane's stream of codes is fetched ahead.
constexpr std::int64_t kCodesAhead = 768;

// Products of a strip, `count` blocks from `block` on, of sixteen rows with kTokens tokens: lane r
// of dots[t][b] is row r's sum, of twice its weights plus 12 with the token's codes.
//
// sum(u * code) = 128 * sum(u * high) + sum(u * low), |sum| <= 32 * 24 * 4096 < 2^22. The table is
// repeated: vpermb looks at six bits of an index, and so the other nibble's need no mask.
template <int kTokens, bool kWhole>
GPTOSS_INLINE void dot_strip_bytes(const std::uint8_t* codes, std::int64_t stride,
                                   const TokenBytes (&tokens)[kTokens], std::int64_t block,
                                   std::int64_t count, __m512i (&dots)[kTokens][kAmxStripBlocks]) {
  const __mmask64 there = kWhole ? ~__mmask64{0} : first_blocks(count);
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  // Each byte from its upper half on, by one byte selection (vpmultishiftqb) instead of a shift.
  const __m512i upper = _mm512_set1_epi64(0x3c342c241c140c04);
  // Four rows at a time: lane b of by_row[g] has block b of rows 4 * g ... 4 * g + 3.
  __m512i by_row[kTokens][4];
  GPTOSS_UNROLL
  for (int g = 0; g < 4; ++g) {
    __m512i dot[kTokens][4];
    GPTOSS_UNROLL
    for (int r = 0; r < 4; ++r) {
      const std::uint8_t* row = codes + (4 * g + r) * stride + block * kMxBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(row) + kCodesAhead, _MM_HINT_T1);
      __m512i bytes = kWhole ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi8(there, row);
      asm("" : "+v"(bytes));  // or the compiler loads them twice
      const __m512i even = _mm512_permutexvar_epi8(bytes, table);
      const __m512i odd =
          _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(upper, bytes), table);
      GPTOSS_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const auto x = [&](int i) __attribute__((always_inline)) {
          return _mm512_load_si512(tokens[t].lines + 64 * (block + i));
        };
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, x(0));
        sum = _mm512_slli_epi32(_mm512_dpbusd_epi32(sum, odd, x(1)), 7);
        dot[t][r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, even, x(2)), odd, x(3));
      }
    }
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(dot[t][0], dot[t][1]),
                                         _mm512_unpackhi_epi32(dot[t][0], dot[t][1]));
      const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(dot[t][2], dot[t][3]),
                                         _mm512_unpackhi_epi32(dot[t][2], dot[t][3]));
      by_row[t][g] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
  }
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    const __m512i a = _mm512_shuffle_i32x4(by_row[t][0], by_row[t][1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(by_row[t][2], by_row[t][3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(by_row[t][0], by_row[t][1], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(by_row[t][2], by_row[t][3], 0xee);
    dots[t][0] = _mm512_shuffle_i32x4(a, b, 0x88);
    dots[t][1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    dots[t][2] = _mm512_shuffle_i32x4(c, d, 0x88);
    dots[t][3] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
}

// Scale bytes of a strip: dword of each lane's row. Reads nothing beyond a row of `num_blocks`.
GPTOSS_INLINE __m512i load_strip_scales(const std::uint8_t* scales, std::int64_t stride,
                                        std::int64_t block, std::int64_t num_blocks) {
  alignas(64) std::uint32_t bytes[kAmxLanes] = {};
  const std::int64_t left = num_blocks - block;
  for (int r = 0; r < kAmxLanes; ++r) {
    const std::uint8_t* row = scales + r * stride + block;
    if (left >= kAmxStripBlocks) {
      __builtin_memcpy(bytes + r, row, kAmxStripBlocks);
    } else {
      for (std::int64_t b = 0; b < left; ++b) {
        bytes[r] |= static_cast<std::uint32_t>(row[b]) << (8 * b);
      }
    }
  }
  return _mm512_load_si512(bytes);
}

// Whether some scale byte is 0, the subnormal 2^-127, or 255, NaN: bits of a float do not say
// those.
GPTOSS_INLINE bool has_odd_scales(__m512i scale_bytes) {
  const __m512i next = _mm512_add_epi8(scale_bytes, _mm512_set1_epi8(1));
  return _mm512_cmple_epu8_mask(next, _mm512_set1_epi8(1)) != 0;
}

// Scales of byte `index` of each lane's dword.
template <int kIndex, bool kOdd>
GPTOSS_INLINE __m512 strip_scale(__m512i scale_bytes) {
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  const __m512i moved = kIndex == 3 ? _mm512_srli_epi32(scale_bytes, 1)
                                    : _mm512_slli_epi32(scale_bytes, 23 - 8 * kIndex);
  __m512i bits = _mm512_and_si512(moved, exponent);
  if constexpr (kOdd) {
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(bits, exponent);
    bits = _mm512_max_epu32(bits, _mm512_set1_epi32(0x00400000));
    bits = _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000));
  }
  return _mm512_castsi512_ps(bits);
}

// acc + (dot - 12 * sum) * x_scale * w_scale. The first product is exact; then there is one
// rounding, as when a tile adds a block's sum to its own.
GPTOSS_INLINE __m512 add_strip_dot(__m512 acc, __m512i dot, const TokenBytes& token,
                                   std::int64_t block, __m512 scale) {
  const __m512 exact =
      _mm512_cvtepi32_ps(_mm512_sub_epi32(dot, _mm512_set1_epi32(token.offsets[block])));
  return _mm512_fmadd_ps(_mm512_mul_ps(exact, _mm512_set1_ps(token.halves[block])), scale, acc);
}

// The least and the largest of some bytes.
struct ByteRange {
  int least;
  int largest;
};
GPTOSS_INLINE ByteRange range_of_bytes(const std::uint8_t* p, std::int64_t count) {
  __m512i least = _mm512_set1_epi8(-1);
  __m512i largest = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < count; i += 64) {
    const __mmask64 there = count - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (count - i)) - 1u;
    const __m512i bytes = _mm512_maskz_loadu_epi8(there, p + i);
    least = _mm512_mask_min_epu8(least, there, least, bytes);
    largest = _mm512_mask_max_epu8(largest, there, largest, bytes);
  }
  alignas(64) std::uint8_t low[64], high[64];
  _mm512_store_si512(low, least);
  _mm512_store_si512(high, largest);
  ByteRange out{255, 0};
  for (int i = 0; i < 64; ++i) {
    out.least = low[i] < out.least ? low[i] : out.least;
    out.largest = high[i] > out.largest ? high[i] : out.largest;
  }
  return out;
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
