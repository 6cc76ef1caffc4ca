// linear_mxfp4 of a few tokens on AMX levels, by VNNI: blocks of sixteen rows turned so that a
// vector has a quad of codes of every row. Turning is paid once for all tokens; then a token's
// block takes twenty vector operations instead of the 36 of mxfp4_lanes-inl.h, with the same bits.
#pragma once

#include "cpu/kernels/mxfp4_lanes-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// As many tokens are faster so than on tiles of bf16. GB/s of two cores of a Xeon whose read loops
// do 38 with 2 to 5 tokens: 31, 31, 28, 23; row by row 31, 27 with two and three.
constexpr int kQuadTokens = 6;
// Blocks side by side while tokens are few: dots that wait for none of the others.
constexpr int quad_blocks(int tokens) {
  return tokens <= 4 ? 2 : 1;
}

// Packed tokens, strip after strip of four blocks: {codes [kTokens][high bytes of even columns, of
// odd ones, low bytes of both][64], starts [4][kTokens], bases [4][kTokens]}.
//
// A dot starts at the bits of the float 1.5 * 2^23 units. While it is below 2^22, what is added to
// those bits is the number of units added to that float, so it needs no conversion and no scaling:
// the float less its base, 1.5 * 2^23 units and what the 12 in each weight added, is exact.
template <int kTokens>
struct QuadTokens {
  static constexpr std::int64_t kCodes = kTokens * 4 * 64;
  static constexpr std::int64_t kStrip = kCodes + 2 * kAmxStripBlocks * kTokens * 4;

  std::byte* data;

  GPTOSS_INLINE QuadTokens strip(std::int64_t index) const { return {data + index * kStrip}; }
  GPTOSS_INLINE std::byte* line(int token, int index) const {
    return data + (token * 4 + index) * 64;
  }
  GPTOSS_INLINE const std::int32_t& quad(int block, int token, int index, int quad) const {
    return reinterpret_cast<const std::int32_t*>(line(token, index))[block * 4 + quad];
  }
  // Of the high bytes, whose dot is shifted by seven bits.
  GPTOSS_INLINE std::int32_t& start(int block, int token) const {
    return reinterpret_cast<std::int32_t*>(data + kCodes)[block * kTokens + token];
  }
  GPTOSS_INLINE float& base(int block, int token) const {
    return reinterpret_cast<float*>(&start(kAmxStripBlocks + block, token))[0];
  }
};

// Whether 2^24 units are finite.
GPTOSS_INLINE bool fits_quads(const UnitRange& units) {
  return units.largest < 127 - 24;
}

// Tokens of args.x_rows from `first` on.
template <int kTokens>
QuadTokens<kTokens> pack_quad_tokens(const LinearMxfp4Args& args, std::int64_t first,
                                     std::byte* out) {
  const Bf16Activations& x = args.x_bf16;
  const std::int64_t num_blocks = x.cols / kMxBlock;
  for (std::int64_t b = 0; b < num_blocks; b += kAmxStripBlocks) {
    const QuadTokens<kTokens> strip = QuadTokens<kTokens>{out}.strip(b / kAmxStripBlocks);
    const std::int64_t left = num_blocks - b;
    const std::int64_t count = left < kAmxStripBlocks ? left : kAmxStripBlocks;
    const __mmask64 there = left >= kAmxStripBlocks ? ~__mmask64{0} : first_blocks(left);
    for (int t = 0; t < kTokens; ++t) {
      const std::int64_t row = args.x_rows[first + t];
      const std::int8_t* bytes = x.bytes + row * 2 * x.cols + b * (kMxBlock / 2);
      for (int i = 0; i < 4; ++i) {
        _mm512_storeu_si512(strip.line(t, i),
                            _mm512_maskz_loadu_epi8(there, bytes + i * (x.cols / 2)));
      }
      for (int i = 0; i < count; ++i) {
        const float scale = x.scales[row * num_blocks + b + i];
        const bool number = scale == scale;
        const float unit = number && scale != 0.0f ? 0.5f * scale : 1.0f;  // codes are zeros else
        const float middle = 0x1.8p23f * unit;
        const auto sum = static_cast<float>(12 * x.sums[row * num_blocks + b + i]);
        strip.start(i, t) = std::bit_cast<std::int32_t>(middle) >> 7;
        strip.base(i, t) = number ? middle + sum * unit : scale;
      }
    }
  }
  return {out};
}

// dot += four products of each row. The compiler would load the quad by itself.
GPTOSS_INLINE void add_quad(__m512i& dot, RowBytes weights, const std::int32_t& quad) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(dot) : "v"(weights), "m"(quad));
}

// A line of `count` lanes from `first` on, kCodesAhead bytes on.
GPTOSS_INLINE void fetch_codes(const std::uint8_t* codes, std::int64_t stride, int first,
                               int count) {
  GPTOSS_UNROLL
  for (int r = first; r < first + count; ++r) __builtin_prefetch(codes + r * stride + kCodesAhead);
}

// acc += blocks [kFirst, kFirst + kCount) of a strip that begins at `codes`.
template <int kFirst, int kCount, int kTokens>
GPTOSS_INLINE void add_quad_blocks(const std::uint8_t* codes, std::int64_t stride,
                                   __m512i scale_bytes, bool odd_scales,
                                   const QuadTokens<kTokens>& tokens, __m512 (&acc)[kTokens]) {
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  RowBytes words[kCount][4];
  __m512i high[kCount][kTokens];
  __m512i low[kCount][kTokens];
  GPTOSS_UNROLL
  for (int b = 0; b < kCount; ++b) {
    load_row_dwords(codes + (kFirst + b) * kMxBlockBytes, stride, words[b]);
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      high[b][t] = _mm512_set1_epi32(tokens.start(kFirst + b, t));
      low[b][t] = _mm512_setzero_si512();
    }
  }
  fetch_codes(codes, stride, kFirst * 4, kCount * 4);
  GPTOSS_UNROLL
  for (int j = 0; j < 8; ++j) {
    RowBytes quads[kCount];
    GPTOSS_UNROLL
    for (int b = 0; b < kCount; ++b) {
      const RowBytes word = words[b][j / 2];
      quads[b] = _mm512_permutexvar_epi8(j % 2 == 0 ? word : _mm512_srli_epi16(word, 4), table);
    }
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      GPTOSS_UNROLL
      for (int b = 0; b < kCount; ++b) {
        add_quad(high[b][t], quads[b], tokens.quad(kFirst + b, t, j % 2, j / 2));
        add_quad(low[b][t], quads[b], tokens.quad(kFirst + b, t, 2 + j % 2, j / 2));
      }
    }
  }
  const auto add = [&]<int kBlock>() __attribute__((always_inline)) {
    const __m512 scale = odd_scales ? strip_scale<kFirst + kBlock, true>(scale_bytes)
                                    : strip_scale<kFirst + kBlock, false>(scale_bytes);
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const __m512i sum = _mm512_add_epi32(low[kBlock][t], _mm512_slli_epi32(high[kBlock][t], 7));
      const __m512 base = _mm512_set1_ps(tokens.base(kFirst + kBlock, t));
      acc[t] = _mm512_fmadd_ps(_mm512_sub_ps(_mm512_castsi512_ps(sum), base), scale, acc[t]);
    }
  };
  add.template operator()<0>();
  if constexpr (kCount == 2) add.template operator()<1>();
}

// acc += a strip of at most four blocks.
template <int kTokens>
GPTOSS_INLINE void add_quad_strip(const std::uint8_t* codes, std::int64_t stride,
                                  std::int64_t count, __m512i scale_bytes,
                                  const QuadTokens<kTokens>& tokens, __m512 (&acc)[kTokens]) {
  const bool odd = has_odd_scales(scale_bytes);
  const auto add = [&]<int kFirst, int kCount>() __attribute__((always_inline)) {
    if (kFirst >= count) return;
    add_quad_blocks<kFirst, kCount>(codes, stride, scale_bytes, odd, tokens, acc);
  };
  if (quad_blocks(kTokens) == 2 && count == kAmxStripBlocks) {
    add.template operator()<0, 2>();
    add.template operator()<2, 2>();
    return;
  }
  add.template operator()<0, 1>();
  add.template operator()<1, 1>();
  add.template operator()<2, 1>();
  add.template operator()<3, 1>();
}

// The products of sixteen rows with kTokens tokens.
template <int kTokens>
GPTOSS_INLINE void multiply_quads(const ByteLanes& in_memory, const QuadTokens<kTokens>& tokens,
                                  __m512 (&acc)[kTokens]) {
  const ByteLanes lanes = in_memory;  // stays in registers
  const std::int64_t num_blocks = lanes.num_blocks;
  fetch_next_scales(lanes);
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_setzero_ps();
  const auto add = [&](std::int64_t block, std::int64_t count,
                       __m512i scale_bytes) __attribute__((always_inline)) {
    add_quad_strip<kTokens>(lanes.codes + block * kMxBlockBytes, lanes.code_stride(), count,
                            scale_bytes, tokens.strip(block / kAmxStripBlocks), acc);
  };
  std::int64_t b = 0;
  for (; b + kScaleGroup <= num_blocks; b += kScaleGroup) {
    RowBytes scale_bytes[kScaleGroup / kAmxStripBlocks];
    load_row_dwords(lanes.scales + b, lanes.scale_stride(), scale_bytes);
    for (int i = 0; i < kScaleGroup / kAmxStripBlocks; ++i) {
      add(b + i * kAmxStripBlocks, kAmxStripBlocks, scale_bytes[i]);
    }
  }
  for (; b < num_blocks; b += kAmxStripBlocks) {
    const std::int64_t left = num_blocks - b;
    add(b, left < kAmxStripBlocks ? left : kAmxStripBlocks,
        load_strip_scales(lanes.scales, lanes.scale_stride(), b, num_blocks));
  }
}

// Tokens [first, first + count) of the call, `count` from kFewest to kTokens.
template <int kFewest, int kTokens = kQuadTokens>
GPTOSS_INLINE void multiply_by_quads(const LinearMxfp4Args& args, std::int64_t first,
                                     std::int64_t count, Range rows, std::byte* space) {
  if (count == kTokens) {
    const QuadTokens<kTokens> tokens = pack_quad_tokens<kTokens>(args, first, space);
    for_lanes<kTokens>(args, first, rows,
                       [&](const ByteLanes& lanes, __m512(&acc)[kTokens])
                           __attribute__((always_inline)) { multiply_quads(lanes, tokens, acc); });
  } else if constexpr (kTokens > kFewest) {
    multiply_by_quads<kFewest, kTokens - 1>(args, first, count, rows, space);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
