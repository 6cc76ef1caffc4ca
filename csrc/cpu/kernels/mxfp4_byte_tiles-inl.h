// linear_mxfp4 of a few tokens on tiles of bytes: blocks of sixteen rows are expanded to a tile B
// of codes, doubled and 12 added, once for all tokens. Bits are those of the integer products.
#pragma once

#include "cpu/kernels/byte_tokens-inl.h"
#include "cpu/kernels/mxfp4_lanes-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// As many tokens are faster so than on tiles of bf16. GB/s of one core of a Xeon with 3 to 8
// tokens: 11.0, 12.2, 10.6, 9.6, 8.7, 7.8; by integers 13.8 with three, on tiles of bf16 9.5 with
// four and more. A row of a tile takes some three cycles to load or store, whatever its length.
constexpr int kByteTileMxTokens = 6;
constexpr std::int64_t kExpandedBytes = kMxBlock / 4 * kTileRowBytes;  // a block of sixteen rows

// Tokens of args.x_rows from `first` on.
template <int kTokens>
ByteTokens<kTokens> pack_mxfp4_tokens(const LinearMxfp4Args& args, std::int64_t first,
                                      std::byte* out) {
  const ByteTokens<kTokens> tokens{out};
  const Bf16Activations& x = args.x_bf16;
  const std::int64_t num_blocks = x.cols / kMxBlock;
  for (std::int64_t b = 0; b < num_blocks; ++b, out += ByteTokens<kTokens>::kBlock) {
    auto* scales = reinterpret_cast<float*>(out + ByteTokens<kTokens>::kCodes);
    auto* offsets = reinterpret_cast<std::int32_t*>(scales + kTokens);
    for (int t = 0; t < kTokens; ++t) {
      const std::int64_t row = args.x_rows[first + t];
      // Quads of a block as expand_lanes leaves them: of each eight the even, then the odd.
      for (int part = 0; part < 2; ++part) {
        const std::int8_t* bytes = x.bytes + (2 * row + part) * x.cols + b * (kMxBlock / 2);
        const __m128i even = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
        const __m128i odd = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + x.cols / 2));
        auto* to = reinterpret_cast<__m128i*>(out + (part * kTokens + t) * kMxBlock);
        _mm_storeu_si128(to, _mm_unpacklo_epi32(even, odd));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi32(even, odd));
      }
      scales[t] = 0.5f * x.scales[row * num_blocks + b];
      offsets[t] = 12 * x.sums[row * num_blocks + b];
    }
  }
  return tokens;
}

// What is between the steps of a strip of blocks: expanded, multiplied, added up.
struct ByteStrips {
  std::byte* memory;

  static constexpr std::int64_t kExpanded = kAmxStripBlocks * kExpandedBytes;
  static constexpr std::int64_t kScales = kAmxStripBlocks * kTileRowBytes;
  static constexpr std::int64_t kProducts = kAmxStripBlocks * ByteTokens<kByteTileTokens>::kProduct;
  static_assert(2 * kExpanded + 4 * kScales + 2 * kProducts <= kAmxPanelBytes + kAmxSumBytes);

  GPTOSS_INLINE std::byte* expanded(std::int64_t strip) const {
    return memory + strip % 2 * kExpanded;
  }
  GPTOSS_INLINE float* scales(std::int64_t strip) const {
    return reinterpret_cast<float*>(memory + 2 * kExpanded + strip % 4 * kScales);
  }
  GPTOSS_INLINE std::byte* products(std::int64_t strip) const {
    return memory + 2 * kExpanded + 4 * kScales + strip % 2 * kProducts;
  }
};

// Blocks [block, block + count) of sixteen rows to `out`, [count][8 quads][16 rows][4].
GPTOSS_INLINE void expand_byte_tiles(const ByteLanes& lanes, std::int64_t block, std::int64_t count,
                                     std::byte* out) {
  const std::uint8_t* codes = lanes.codes + block * kMxBlockBytes;
  fetch_codes(codes, lanes.code_stride());
  for (std::int64_t b = 0; b < count; ++b, codes += kMxBlockBytes, out += kExpandedBytes) {
    RowBytes quads[8];
    expand_lanes(codes, lanes.code_stride(), quads);
    GPTOSS_UNROLL
    for (int i = 0; i < 8; ++i) _mm512_store_si512(out + i * kTileRowBytes, quads[i]);
  }
}

template <bool kOdd>
GPTOSS_INLINE void expand_scales(__m512i bytes, float* out) {
  _mm512_store_ps(out, strip_scale<0, kOdd>(bytes));
  _mm512_store_ps(out + kAmxLanes, strip_scale<1, kOdd>(bytes));
  _mm512_store_ps(out + 2 * kAmxLanes, strip_scale<2, kOdd>(bytes));
  _mm512_store_ps(out + 3 * kAmxLanes, strip_scale<3, kOdd>(bytes));
}

template <int kTokens>
GPTOSS_INLINE void multiply_expanded(const ByteTokens<kTokens>& tokens, std::int64_t block,
                                     std::int64_t count, const std::byte* expanded,
                                     std::byte* products) {
  const auto multiply = [&]<int kIndex>() __attribute__((always_inline)) {
    if (kIndex >= count) return;
    constexpr int kA = kIndex % 2 == 0 ? kA0 : kA1;
    constexpr int kB = kIndex % 2 == 0 ? kB0 : kB1;
    load_tile<kB>(expanded + kIndex * kExpandedBytes, kTileRowBytes);
    load_tile<kA>(tokens.codes(block + kIndex), kMxBlock);
    zero_tile<kIndex>();
    add_byte_tile_product<kIndex, kA, kB>();
    store_tile<kIndex>(products + kIndex * ByteTokens<kTokens>::kProduct, kTileRowBytes);
  };
  multiply.template operator()<0>();
  multiply.template operator()<1>();
  multiply.template operator()<2>();
  multiply.template operator()<3>();
}

// The products of sixteen rows with kTokens tokens. In turn: a strip is multiplied, the next
// expanded, the one before added up, so that none waits for the other.
template <int kTokens>
GPTOSS_INLINE void multiply_tile_lanes(const ByteLanes& in_memory,
                                       const ByteTokens<kTokens>& tokens_in_memory,
                                       std::byte* memory, __m512 (&acc)[kTokens]) {
  const ByteLanes lanes = in_memory;  // stay in registers
  const ByteTokens<kTokens> tokens = tokens_in_memory;
  const ByteStrips strips{memory};
  fetch_next_scales(lanes);
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_setzero_ps();
  const std::int64_t num_blocks = lanes.num_blocks;
  const std::int64_t num_strips = (num_blocks + kAmxStripBlocks - 1) / kAmxStripBlocks;
  const auto count = [&](std::int64_t strip) __attribute__((always_inline)) {
    const std::int64_t left = num_blocks - strip * kAmxStripBlocks;
    return left < kAmxStripBlocks ? left : kAmxStripBlocks;
  };
  for (std::int64_t s = 0; s < num_strips + 2; ++s) {
    if (s >= 1 && s <= num_strips) {
      multiply_expanded(tokens, (s - 1) * kAmxStripBlocks, count(s - 1), strips.expanded(s - 1),
                        strips.products(s - 1));
    }
    if (s < num_strips) {
      expand_byte_tiles(lanes, s * kAmxStripBlocks, count(s), strips.expanded(s));
      const __m512i bytes =
          load_strip_scales(lanes.scales, lanes.scale_stride(), s * kAmxStripBlocks, num_blocks);
      if (has_odd_scales(bytes)) [[unlikely]] {
        expand_scales<true>(bytes, strips.scales(s));
      } else {
        expand_scales<false>(bytes, strips.scales(s));
      }
    }
    if (s < 2) continue;
    const std::int64_t blocks = count(s - 2);
    for (std::int64_t b = 0; b < blocks; ++b) {
      const __m512 scale = _mm512_load_ps(strips.scales(s - 2) + b * kAmxLanes);
      const std::byte* product = strips.products(s - 2) + b * ByteTokens<kTokens>::kProduct;
      GPTOSS_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        acc[t] = tokens.add(acc[t], product, (s - 2) * kAmxStripBlocks + b, t, scale);
      }
    }
  }
}

template <int kTokens>
void multiply_tokens_on_tiles(const LinearMxfp4Args& args, std::int64_t first, Range rows,
                              const AmxScratch& scratch) {
  const ByteTokens<kTokens> tokens = pack_mxfp4_tokens<kTokens>(args, first, scratch.tokens);
  const ByteTileScope<kTokens> scope;
  auto* memory = reinterpret_cast<std::byte*>(scratch.sums);
  for_lanes<kTokens>(
      args, first, rows,
      [&](const ByteLanes& lanes, __m512(&acc)[kTokens])
          __attribute__((always_inline)) { multiply_tile_lanes(lanes, tokens, memory, acc); });
}

// Tokens [first, first + count) of the call, count from kFewest to kTokens.
template <int kFewest, int kTokens = kByteTileMxTokens>
GPTOSS_INLINE void multiply_some_on_tiles(const LinearMxfp4Args& args, std::int64_t first,
                                          std::int64_t count, Range rows,
                                          const AmxScratch& scratch) {
  if (count == kTokens) {
    multiply_tokens_on_tiles<kTokens>(args, first, rows, scratch);
  } else if constexpr (kTokens > kFewest) {
    multiply_some_on_tiles<kFewest, kTokens - 1>(args, first, count, rows, scratch);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
