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
#include "cpu/kernels/mxfp4_lanes-inl.h"
#include "cpu/kernels/mxfp4_quads-inl.h"
#include "cpu/simd/amx_bytes.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

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
    for (std::int64_t t = tokens.begin; t < tokens.end; t += kStripTokens) {
      const std::int64_t left = tokens.end - t;
      multiply_few(args, t, left < kStripTokens ? left : kStripTokens, {row, row + kRows},
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
  const auto units_of = [&](Range tokens) {
    return unit_range(args.x_bf16, tokens, [&](std::int64_t t) { return args.x_rows[t]; });
  };
  if (args.num_rows <= kStripTokens) {
    return multiply_few(args, 0, args.num_rows, rows, scratch.blocks);
  }
  if (args.num_rows <= kQuadTokens && fits_quads(units_of({0, args.num_rows}))) {
    return multiply_by_quads<kStripTokens + 1>(args, 0, args.num_rows, rows, scratch.tokens);
  }
  for (std::int64_t first = 0; first < args.num_rows; first += kAmxTokens) {
    const std::int64_t left = args.num_rows - first;
    const Range tokens{first, first + (left < kAmxTokens ? left : kAmxTokens)};
    const TokenTiles x = pack_bf16_tokens(args, tokens, scratch.tokens);
    const UnitRange units = units_of(tokens);
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
