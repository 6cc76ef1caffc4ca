// linear_mxfp4_int8 on AMX: out[out_rows[i]] = weight [rows][cols] times x[x_rows[i]], plus bias;
// MXFP4 weights as stored, activations of quantize_bf16. Reads the weights once for every
// kAmxTokens tokens, and nothing beyond the matrix.
//
// The arithmetic of an output: for each block of 32 along K in order, acc = fma(dot * x_scale,
// w_scale, acc), where dot * x_scale is exact; then + bias. Tiles do just that where no product
// leaves the normal numbers (fits_tiles): a block's products are multiples of one power of two and
// sum to less than 2^24 of it. So few tokens, for whom expanding tiles costs more than it saves,
// and the panels that do not fit are computed from integers, and the bits are the same.
#pragma once

#include "cpu/kernels/amx_product-inl.h"
#include "cpu/simd/amx_bytes.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// --- few tokens
// -------------------------------------------------------------------------------------

// As many tokens of an expert are met by integers; more are faster on tiles. GB/s of one core of a
// Xeon with 1, 2, 3, 4 tokens: 16.3, 15.6, 12.2, 8.9; tiles 9.0 whatever the number.
constexpr int kByteTokens = 3;
// Blocks whose scales are loaded at a time.
constexpr std::int64_t kScaleGroup = 16;

GPTOSS_INLINE TokenBytes token_bytes(const Bf16Activations& x, std::int64_t row, std::byte* space) {
  const std::int8_t* bytes = x.bytes + row * 2 * x.cols;
  const std::int64_t part = x.cols / 2;
  const std::int64_t num_blocks = x.cols / kMxBlock;
  auto* offsets = reinterpret_cast<std::int32_t*>(space);
  auto* halves = reinterpret_cast<float*>(space) + num_blocks;
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    offsets[b] = 12 * x.sums[row * num_blocks + b];
    halves[b] = 0.5f * x.scales[row * num_blocks + b];
  }
  return {{bytes, bytes + part, bytes + 2 * part, bytes + 3 * part}, offsets, halves};
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
  for (int r = 0; r < kAmxLanes; ++r) {  // of the next row
    const std::uint8_t* next = lanes.scales + r * stride + num_blocks;
    for (std::int64_t b = num_blocks - 1; b >= 0; b -= 64) __builtin_prefetch(next + b, 0, 2);
  }
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
template <int kTokens>
void multiply_tokens(const LinearMxfp4Args& args, std::int64_t first, Range rows,
                     std::byte* space) {
  const std::int64_t num_blocks = args.weight.blocks_per_row();
  TokenBytes tokens[kTokens];
  float* out[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    tokens[t] = token_bytes(args.x_bf16, args.x_rows[first + t], space + t * num_blocks * 8);
    out[t] = args.out.row(args.out_rows[first + t]);
  }
  const std::int64_t step = rows.size() / kAmxLanes;
  for (std::int64_t row = rows.begin; row < rows.begin + step; ++row) {
    const ByteLanes lanes{args.weight.blocks + row * num_blocks * kMxBlockBytes,
                          args.weight.scales + row * num_blocks, step, num_blocks};
    __m512 acc[kTokens];
    multiply_byte_lanes<kTokens>(lanes, tokens, acc);
    alignas(64) float sums[kTokens][kAmxLanes];
    for (int t = 0; t < kTokens; ++t) _mm512_store_ps(sums[t], acc[t]);
    for (int r = 0; r < kAmxLanes; ++r) {
      const float bias = to_float(args.bias[row + r * step]);
      for (int t = 0; t < kTokens; ++t) out[t][row + r * step] = sums[t][r] + bias;
    }
  }
}

// Tokens [first, first + count) of the call, count at most kTokens.
template <int kTokens = kByteTokens>
GPTOSS_INLINE void multiply_few(const LinearMxfp4Args& args, std::int64_t first, std::int64_t count,
                                Range rows, std::byte* space) {
  if (count == kTokens) {
    multiply_tokens<kTokens>(args, first, rows, space);
  } else if constexpr (kTokens > 1) {
    multiply_few<kTokens - 1>(args, first, count, rows, space);
  }
}

// --- tiles
// ------------------------------------------------------------------------------------------

// Products are multiples of unit * 0.5 * 2^(byte - 127), which must be normal; a block's sum is at
// most 32 * 6 * 4096 units times 2^(byte - 127), and 2^8 blocks must be finite.
GPTOSS_INLINE bool fits_tiles(const UnitRange& units, const ByteRange& scales) {
  if (scales.least < kMinTileScale || scales.largest > kMaxTileScale) return false;
  if (units.least > units.largest) return true;  // all zeros or NaN
  return units.least + scales.least - 128 >= -126 &&
         units.largest + scales.largest - 127 < 127 - 28;
}

// Tiles of adjacent rows, one block of 32 a step.
struct Mxfp4Tiles {
  const std::uint8_t* codes;
  const std::uint8_t* scales;
  std::int64_t num_blocks;
  std::int64_t rows;  // of the panel

  GPTOSS_INLINE void fill(std::int64_t step, int row_tile, std::byte* to) const {
    const std::int64_t row = row_tile * kTileRows;
    const std::int64_t row_bytes = num_blocks * kMxBlockBytes;
    expand_mxfp4_tile(codes + row * row_bytes + step * kMxBlockBytes, row_bytes,
                      scales + row * num_blocks + step, num_blocks, to);
  }
  GPTOSS_INLINE TileView tile(std::int64_t, int, const std::byte* filled) const {
    return {filled, kTileRowBytes};
  }
  // Past the end of the matrix a fetch does nothing.
  GPTOSS_INLINE void fetch_next(Range steps, Share share) const {
    static_assert(kPanelSteps % 4 == 0);  // whole lines
    const std::int64_t row_bytes = num_blocks * kMxBlockBytes;
    fetch_lines(codes + rows * row_bytes + steps.begin * kMxBlockBytes, row_bytes, rows,
                kPanelSteps / 4, share);
  }
};

GPTOSS_INLINE TokenTiles pack_bf16_tokens(const LinearMxfp4Args& args, Range tokens,
                                          std::byte* out) {
  const Bf16Activations& x = args.x_bf16;
  const auto words = [&](std::int64_t token, std::int64_t step) __attribute__((always_inline)) {
    const std::int64_t row = args.x_rows[tokens.begin + token];
    return _mm512_loadu_si512(x.values + row * x.cols + step * kTileDepth);
  };
  const auto pair = [](int row) __attribute__((always_inline)) { return mxfp4_pair(row); };
  return pack_tokens(tokens.size(), x.cols / kTileDepth, words, pair, out);
}

template <int kRowTiles>
void mxfp4_panel(const LinearMxfp4Args& args, const TokenTiles& x, Range tokens, std::int64_t row,
                 const UnitRange& units, const AmxScratch& scratch) {
  constexpr std::int64_t kRows = kRowTiles * kTileRows;
  const std::int64_t num_blocks = args.weight.blocks_per_row();
  const std::uint8_t* scales = args.weight.scales + row * num_blocks;
  if (!fits_tiles(units, range_of_bytes(scales, kRows * num_blocks))) {
    for (std::int64_t t = tokens.begin; t < tokens.end; t += kByteTokens) {
      const std::int64_t left = tokens.end - t;
      multiply_few(args, t, left < kByteTokens ? left : kByteTokens, {row, row + kRows},
                   scratch.blocks);
    }
    return;
  }
  const Mxfp4Tiles weights{args.weight.blocks + row * num_blocks * kMxBlockBytes, scales,
                           num_blocks, kRows};
  multiply_panel<kRowTiles>(weights, x, scratch);
  finish_panel<kRowTiles>(scratch, x.count, kRows, args.bias + row, Epilogue::kStore,
                          [&](std::int64_t token) __attribute__((always_inline)) {
                            return args.out.row(args.out_rows[tokens.begin + token]) + row;
                          });
}

void linear_mxfp4_amx(const LinearMxfp4Args& args, Range rows, std::byte* memory) {
  const AmxScratch scratch = cut_amx_scratch(memory, args.weight.cols);
  if (args.num_rows <= kByteTokens) {
    return multiply_few(args, 0, args.num_rows, rows, scratch.blocks);
  }
  for (std::int64_t first = 0; first < args.num_rows; first += kAmxTokens) {
    const std::int64_t left = args.num_rows - first;
    const Range tokens{first, first + (left < kAmxTokens ? left : kAmxTokens)};
    const TokenTiles x = pack_bf16_tokens(args, tokens, scratch.tokens);
    const UnitRange units =
        unit_range(args.x_bf16, tokens, [&](std::int64_t t) { return args.x_rows[t]; });
    const TileScope scope(x.width());
    std::int64_t row = rows.begin;
    for (; row + 2 * kTileRows <= rows.end; row += 2 * kTileRows) {
      mxfp4_panel<2>(args, x, tokens, row, units, scratch);
    }
    if (row < rows.end) mxfp4_panel<1>(args, x, tokens, row, units, scratch);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
