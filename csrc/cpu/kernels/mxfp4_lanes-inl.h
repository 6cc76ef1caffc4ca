// linear_mxfp4 of few tokens on AMX levels, by VNNI: sixteen rows side by side, a cache line of
// each at a time, their dots in integers, then for each block acc = fma(dot * x_scale, w_scale,
// acc), where dot * x_scale is exact.
#pragma once

#include "cpu/kernels/amx_product-inl.h"
#include "cpu/simd/amx_bytes.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// As many tokens of an expert are met so; more share turned blocks (mxfp4_quads-inl.h).
constexpr int kStripTokens = 2;
// Blocks whose scales are loaded at a time.
constexpr std::int64_t kScaleGroup = 16;

// Bytes of a token: 72 a block, of whole strips.
GPTOSS_INLINE std::int64_t token_bytes_size(std::int64_t num_blocks) {
  return (num_blocks + kAmxStripBlocks - 1) / kAmxStripBlocks * kAmxStripBlocks * 72;
}

GPTOSS_INLINE TokenBytes token_bytes(const Bf16Activations& x, std::int64_t row, std::byte* space) {
  const std::int8_t* bytes = x.bytes + row * 2 * x.cols;
  const std::int64_t num_blocks = x.cols / kMxBlock;
  auto* lines = reinterpret_cast<std::int8_t*>(space);
  for (std::int64_t b = 0; b < num_blocks; b += kAmxStripBlocks) {
    const std::int64_t left = num_blocks - b;
    const __mmask64 there = left >= kAmxStripBlocks ? ~__mmask64{0} : first_blocks(left);
    for (int i = 0; i < 4; ++i, space += 64) {
      const std::int8_t* from = bytes + i * (x.cols / 2) + b * (kMxBlock / 2);
      _mm512_store_si512(space, _mm512_maskz_loadu_epi8(there, from));
    }
  }
  auto* offsets = reinterpret_cast<std::int32_t*>(space);
  auto* halves = reinterpret_cast<float*>(space) + num_blocks;
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    offsets[b] = 12 * x.sums[row * num_blocks + b];
    halves[b] = 0.5f * x.scales[row * num_blocks + b];
  }
  return {lines, offsets, halves};
}

// Sixteen rows, `step` apart.
struct ByteLanes {
  const std::uint8_t* codes;  // of the first lane
  const std::uint8_t* scales;
  std::int64_t step;
  std::int64_t num_blocks;

  GPTOSS_INLINE std::int64_t scale_stride() const { return step * num_blocks; }
  GPTOSS_INLINE std::int64_t code_stride() const { return scale_stride() * kMxBlockBytes; }
};

// The scales of the rows after these.
GPTOSS_INLINE void fetch_next_scales(const ByteLanes& lanes) {
  for (int r = 0; r < kAmxLanes; ++r) {
    const std::uint8_t* next = lanes.scales + r * lanes.scale_stride() + lanes.num_blocks;
    for (std::int64_t b = lanes.num_blocks - 1; b >= 0; b -= 64) {
      __builtin_prefetch(next + b, 0, 2);
    }
  }
}

template <int kTokens, bool kOdd>
GPTOSS_INLINE void add_strip(const __m512i (&dots)[kTokens][kAmxStripBlocks],
                             const TokenBytes (&tokens)[kTokens], __m512i scale_bytes,
                             std::int64_t block, std::int64_t count, __m512 (&acc)[kTokens]) {
  const auto add = [&]<int kIndex>() __attribute__((always_inline)) {
    if (kIndex >= count) return;
    const __m512 scale = strip_scale<kIndex, kOdd>(scale_bytes);
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      acc[t] = add_strip_dot(acc[t], dots[t][kIndex], tokens[t], block + kIndex, scale);
    }
  };
  add.template operator()<0>();
  add.template operator()<1>();
  add.template operator()<2>();
  add.template operator()<3>();
}

// Blocks [block, block + count) of the lanes; whole strips have kAmxStripBlocks.
template <int kTokens, bool kWhole>
GPTOSS_INLINE void multiply_strip(const ByteLanes& lanes, const TokenBytes (&tokens)[kTokens],
                                  std::int64_t block, __m512i scale_bytes, __m512 (&acc)[kTokens]) {
  const std::int64_t count = kWhole ? kAmxStripBlocks : lanes.num_blocks - block;
  __m512i dots[kTokens][kAmxStripBlocks];
  dot_strip_bytes<kTokens, kWhole>(lanes.codes, lanes.code_stride(), tokens, block, count, dots);
  if (has_odd_scales(scale_bytes)) [[unlikely]] {
    add_strip<kTokens, true>(dots, tokens, scale_bytes, block, count, acc);
  } else {
    add_strip<kTokens, false>(dots, tokens, scale_bytes, block, count, acc);
  }
}

// The products of sixteen rows with kTokens tokens.
template <int kTokens>
GPTOSS_INLINE void multiply_byte_lanes(const ByteLanes& lanes, const TokenBytes (&tokens)[kTokens],
                                       __m512 (&acc)[kTokens]) {
  const std::int64_t num_blocks = lanes.num_blocks;
  const std::int64_t stride = lanes.scale_stride();
  fetch_next_scales(lanes);
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_setzero_ps();
  std::int64_t b = 0;
  for (; b + kScaleGroup <= num_blocks; b += kScaleGroup) {
    RowBytes scale_bytes[kScaleGroup / kAmxStripBlocks];
    load_row_dwords(lanes.scales + b, stride, scale_bytes);
    for (int i = 0; i < kScaleGroup / kAmxStripBlocks; ++i) {
      multiply_strip<kTokens, true>(lanes, tokens, b + i * kAmxStripBlocks, scale_bytes[i], acc);
    }
  }
  for (; b < num_blocks; b += kAmxStripBlocks) {
    const __m512i scale_bytes = load_strip_scales(lanes.scales, stride, b, num_blocks);
    if (b + kAmxStripBlocks <= num_blocks) {
      multiply_strip<kTokens, true>(lanes, tokens, b, scale_bytes, acc);
    } else {
      multiply_strip<kTokens, false>(lanes, tokens, b, scale_bytes, acc);
    }
  }
}

// Each lane walks its own part of the rows, so that the memory sees sixteen long streams.
// multiply(lanes, acc): the products of sixteen rows with tokens [first, first + kTokens).
template <int kTokens, typename Multiply>
GPTOSS_INLINE void for_lanes(const LinearMxfp4Args& args, std::int64_t first, Range rows,
                             const Multiply& multiply) {
  const std::int64_t num_blocks = args.weight.blocks_per_row();
  float* out[kTokens];
  for (int t = 0; t < kTokens; ++t) out[t] = args.out.row(args.out_rows[first + t]);
  const std::int64_t step = rows.size() / kAmxLanes;
  for (std::int64_t row = rows.begin; row < rows.begin + step; ++row) {
    const ByteLanes lanes{args.weight.blocks + row * num_blocks * kMxBlockBytes,
                          args.weight.scales + row * num_blocks, step, num_blocks};
    __m512 acc[kTokens];
    multiply(lanes, acc);
    alignas(64) float sums[kTokens][kAmxLanes];
    for (int t = 0; t < kTokens; ++t) _mm512_store_ps(sums[t], acc[t]);
    for (int r = 0; r < kAmxLanes; ++r) {
      const float bias = to_float(args.bias[row + r * step]);
      for (int t = 0; t < kTokens; ++t) out[t][row + r * step] = sums[t][r] + bias;
    }
  }
}

template <int kTokens>
void multiply_tokens(const LinearMxfp4Args& args, std::int64_t first, Range rows,
                     std::byte* space) {
  const std::int64_t num_blocks = args.weight.blocks_per_row();
  TokenBytes tokens[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    tokens[t] = token_bytes(args.x_bf16, args.x_rows[first + t],
                            space + t * align_up(token_bytes_size(num_blocks)));
  }
  for_lanes<kTokens>(
      args, first, rows,
      [&](const ByteLanes& lanes, __m512(&acc)[kTokens])
          __attribute__((always_inline)) { multiply_byte_lanes<kTokens>(lanes, tokens, acc); });
}

// Tokens [first, first + count) of the call, count at most kTokens.
template <int kTokens = kStripTokens>
GPTOSS_INLINE void multiply_few(const LinearMxfp4Args& args, std::int64_t first, std::int64_t count,
                                Range rows, std::byte* space) {
  if (count == kTokens) {
    multiply_tokens<kTokens>(args, first, rows, space);
  } else if constexpr (kTokens > 1) {
    multiply_few<kTokens - 1>(args, first, count, rows, space);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
