// The int8 kernels' operations in portable C++: the same names and the same arithmetic as on the
// other ISAs, save that a product is rounded before it is added (no fma). A tile is 8 rows;
// weights are plain signed bytes.
#pragma once

#include <bit>
#include <cstdint>

#include "base/dtype.h"
#include "cpu/kernel_table.h"
#include "cpu/simd/inline.h"
#include "model/mxfp4.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kRowTile = 8;
constexpr int kTokenGroup = 4;
constexpr int kPanelTiles = 1;
constexpr int kFourTileTokens = 0;
constexpr int kTwoTileTokens = 0;
constexpr int kFloatTokens = 4;
constexpr std::int32_t kMxfp4Offset = 0;
constexpr std::int32_t kInt8Offset = 0;
constexpr std::int64_t kInt8Group = 4;  // codes of a row side by side in a packed block

struct RowFloats {
  float v[kRowTile];
};
struct RowInts {
  std::int32_t v[kRowTile];
};
struct RowBytes {
  std::uint8_t v[kRowTile][4];
};

GPTOSS_INLINE RowFloats zero_row_floats() {
  return RowFloats{};
}
GPTOSS_INLINE RowFloats load_row_floats(const float* p) {
  RowFloats out;
  __builtin_memcpy(out.v, p, sizeof out.v);
  return out;
}
GPTOSS_INLINE RowFloats load_row_bf16(const bf16* p) {
  RowFloats out;
  for (int r = 0; r < kRowTile; ++r) out.v[r] = to_float(p[r]);
  return out;
}
GPTOSS_INLINE void store_row_floats(float* p, const RowFloats& v) {
  __builtin_memcpy(p, v.v, sizeof v.v);
}
GPTOSS_INLINE RowBytes load_row_bytes(const std::uint8_t* p) {
  RowBytes out;
  __builtin_memcpy(out.v, p, sizeof out.v);
  return out;
}
GPTOSS_INLINE void store_row_bytes(std::uint8_t* p, const RowBytes& v) {
  __builtin_memcpy(p, v.v, sizeof v.v);
}
GPTOSS_INLINE RowFloats add_row_floats(const RowFloats& a, const RowFloats& b) {
  RowFloats out;
  for (int r = 0; r < kRowTile; ++r) out.v[r] = a.v[r] + b.v[r];
  return out;
}
// acc + w * x.
GPTOSS_INLINE RowFloats fma_row_floats(const RowFloats& w, float x, const RowFloats& acc) {
  RowFloats out;
  for (int r = 0; r < kRowTile; ++r) out.v[r] = acc.v[r] + w.v[r] * x;
  return out;
}
GPTOSS_INLINE RowFloats fma_row_floats(const RowFloats& a, const RowFloats& b,
                                       const RowFloats& acc) {
  RowFloats out;
  for (int r = 0; r < kRowTile; ++r) out.v[r] = acc.v[r] + a.v[r] * b.v[r];
  return out;
}
// acc + (dot * x_scale) * w_scale.
GPTOSS_INLINE RowFloats add_scaled_dot(const RowFloats& acc, const RowInts& dot, float x_scale,
                                       const RowFloats& w_scale) {
  RowFloats out;
  for (int r = 0; r < kRowTile; ++r) {
    out.v[r] = acc.v[r] + (static_cast<float>(dot.v[r]) * x_scale) * w_scale.v[r];
  }
  return out;
}

// 16 bytes of every row of a row-major matrix: dword j of each row goes to out[j].
GPTOSS_INLINE void load_row_dwords(const std::uint8_t* p, std::int64_t stride, RowBytes (&out)[4]) {
  for (int r = 0; r < kRowTile; ++r) {
    for (int j = 0; j < 4; ++j) __builtin_memcpy(out[j].v[r], p + r * stride + 4 * j, 4);
  }
}

// Doubled e2m1 values of the low (half 0) or high nibbles.
GPTOSS_INLINE RowBytes decode_nibbles(const RowBytes& codes, int half) {
  RowBytes out;
  for (int r = 0; r < kRowTile; ++r) {
    for (int i = 0; i < 4; ++i) {
      out.v[r][i] = static_cast<std::uint8_t>(kE2m1Doubled[(codes.v[r][i] >> (4 * half)) & 15]);
    }
  }
  return out;
}

// The e2m1 value of nibble `index` (0 to 7) of every row's dword.
GPTOSS_INLINE RowFloats decode_nibble_floats(const RowBytes& codes, int index) {
  RowFloats out;
  for (int r = 0; r < kRowTile; ++r) {
    const int code = (codes.v[r][index / 2] >> (4 * (index % 2))) & 15;
    out.v[r] = 0.5f * static_cast<float>(kE2m1Doubled[code]);
  }
  return out;
}

// e8m0 byte `index` (0 to 3) of every row's dword.
GPTOSS_INLINE RowFloats decode_scales(const RowBytes& bytes, int index) {
  RowFloats out;
  for (int r = 0; r < kRowTile; ++r) out.v[r] = e8m0_to_float(bytes.v[r][index]);
  return out;
}

// Where a block's sum starts, given q of the activations and its sum.
GPTOSS_INLINE std::int32_t start_of_mxfp4_dot(const std::int8_t*, std::int32_t) {
  return 0;
}

// Exact products of a block of MXFP4 weights: kTiles tiles, kTokens tokens. x: [kTokens][32],
// kernel order; init: [kTokens], where the sums start.
template <int kTiles, int kTokens, typename Block>
GPTOSS_INLINE void dot_mxfp4_block(const Block& block, const std::int8_t* x,
                                   const std::int32_t* init, RowInts (&dot)[kTiles][kTokens]) {
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRowTile; ++r) dot[tile][t].v[r] = init[t];
    }
    for (int i = 0; i < 8; ++i) {
      const RowBytes w = block.plane(tile, i);
      for (int t = 0; t < kTokens; ++t) {
        const std::int8_t* quad = x + t * 32 + i * 4;
        for (int r = 0; r < kRowTile; ++r) {
          std::int32_t sum = 0;
          for (int j = 0; j < 4; ++j) sum += static_cast<std::int8_t>(w.v[r][j]) * quad[j];
          dot[tile][t].v[r] += sum;
        }
      }
    }
  }
}

// Exact products of a block of int8 weights and 15-bit activations. x: [kTokens][32], rows of
// `stride` blocks.
template <int kTiles, int kTokens, typename Block>
GPTOSS_INLINE void dot_int8_block(const Block& block, const std::int16_t* x, const std::int32_t*,
                                  std::int64_t stride, RowInts (&dot)[kTiles][kTokens]) {
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int t = 0; t < kTokens; ++t) dot[tile][t] = RowInts{};
    for (int i = 0; i < 8; ++i) {
      const RowBytes w = block.plane(tile, i);
      for (int t = 0; t < kTokens; ++t) {
        // A copy, or GCC 12 vectorises over tokens and reads a row too many.
        std::int16_t quad[4];
        __builtin_memcpy(quad, x + t * stride * 32 + i * 4, sizeof quad);
        for (int r = 0; r < kRowTile; ++r) {
          std::int32_t sum = 0;
          for (int j = 0; j < 4; ++j) sum += static_cast<std::int8_t>(w.v[r][j]) * quad[j];
          dot[tile][t].v[r] += sum;
        }
      }
    }
  }
}

// One token: a strip is one block of a row; four rows share their dots.
constexpr std::int64_t kStripBlocks = 1;
struct StripDots {
  std::int32_t v[4];  // [4 rows]
};

// Exact products of a block of four rows, `stride` bytes apart. x: [2][16], the elements of low
// nibbles, then of high ones; init: [4], of which the first is added.
GPTOSS_INLINE StripDots dot_strip(const std::uint8_t* codes, std::int64_t stride,
                                  const std::int8_t* x, const std::int32_t* init) {
  StripDots out;
  for (int r = 0; r < 4; ++r) {
    std::int32_t sum = init[0];
    for (int i = 0; i < 16; ++i) {
      const std::uint8_t code = codes[r * stride + i];
      sum += kE2m1Doubled[code & 15] * x[i] + kE2m1Doubled[code >> 4] * x[16 + i];
    }
    out.v[r] = sum;
  }
  return out;
}

// dots: of the rows of a tile, four at a time; out[0]: the block of every row.
GPTOSS_INLINE void dots_by_block(const StripDots (&dots)[kRowTile / 4],
                                 RowInts (&out)[kStripBlocks]) {
  for (int r = 0; r < kRowTile; ++r) out[0].v[r] = dots[r / 4].v[r % 4];
}

// 32 values of a row, to be quantised.
struct FloatBlock {
  float v[32];
};

GPTOSS_INLINE FloatBlock load_float_block(const float* p) {
  FloatBlock out;
  __builtin_memcpy(out.v, p, sizeof out.v);
  return out;
}
GPTOSS_INLINE FloatBlock load_float_block(const bf16* p) {
  FloatBlock out;
  for (int i = 0; i < 32; ++i) out.v[i] = to_float(p[i]);
  return out;
}
// Bits of the largest magnitude; 0x7f800000 or more when the block is not finite.
GPTOSS_INLINE std::uint32_t max_magnitude_bits(const FloatBlock& block) {
  std::uint32_t largest = 0;
  for (const float value : block.v) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}
// Rounded to nearest even, within +-limit; |value| < 2^22.
GPTOSS_INLINE float round_within(float value, float limit) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bit for a fraction
  const float rounded = (value + kRound) - kRound;
  return rounded > limit ? limit : rounded < -limit ? -limit : rounded;
}
// q = round to nearest even(x / scale) within +-127, in kernel order; returns the sum of q.
GPTOSS_INLINE std::int32_t quantize_block(const FloatBlock& block, float scale, std::int8_t* q) {
  std::int32_t sum = 0;
  for (int i = 0; i < 32; ++i) {
    const auto value = static_cast<std::int8_t>(round_within(block.v[i] / scale, 127.0f));
    q[(i & ~7) + (i & 1) * 4 + (i & 7) / 2] = value;
    sum += value;
  }
  return sum;
}
// Codes = round to nearest even(x / scale) within +-16256; returns their sum.
GPTOSS_INLINE std::int32_t quantize_int15_block(const FloatBlock& block, float scale,
                                                std::int16_t* out) {
  std::int32_t sum = 0;
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<std::int16_t>(round_within(block.v[i] / scale, kInt15Max));
    sum += out[i];
  }
  return sum;
}
GPTOSS_INLINE std::int16_t int15_code_at(const std::int16_t* block, std::int64_t index) {
  return block[index];
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
