// linear_bf16 on AMX tiles: x float32 [num_tokens][cols], rounded to bf16, times weight bf16
// [rows][cols] transposed, plus bias [rows], stored to or added to out float32 [num_tokens][rows].
// Moves 2 * rows * cols bytes of weights for every kAmxTokens tokens.
//
// Up to sixteen tokens read the weights where they are, sixteen rows at a time, which streams at
// the speed of a plain read loop; more copy them to tiles first, rows being powers of two apart.
#pragma once

#include "cpu/kernels/amx_product-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Bytes that each lane's stream is fetched ahead; 192, 320 and 512 are 2 to 7 % slower.
constexpr std::int64_t kBf16LaneAhead = 256;

struct Bf16Tiles {
  const bf16* data;  // of the first row
  std::int64_t stride;
  std::int64_t rows;  // there may be fewer than the tiles have
  std::int64_t cols;

  GPTOSS_INLINE void fill(std::int64_t step, int row_tile, std::byte* to) const {
    const std::int64_t row = row_tile * kTileRows;
    const std::int64_t col = step * kTileDepth;
    copy_bf16_tile(data + row * stride + col, stride, rows - row, cols - col, to);
  }
  GPTOSS_INLINE TileView tile(std::int64_t, int, const std::byte* filled) const {
    return {filled, kTileRowBytes};
  }
  // Past the end of the matrix a fetch does nothing.
  GPTOSS_INLINE void fetch_next(Range steps, Share share) const {
    fetch_lines(data + rows * stride + steps.begin * kTileDepth, 2 * stride, rows, steps.size(),
                share);
  }
};

// Sixteen rows, `step` apart, in place: where each walks its own part of the rows, memory sees
// sixteen long streams. One core of a Xeon whose best read loop does 18.4 GB/s: 17.1 so, 15.9 with
// sixteen adjacent rows at a time.
struct Bf16Lanes {
  const bf16* data;  // of the first row
  std::int64_t stride;

  GPTOSS_INLINE void fill(std::int64_t, int, std::byte*) const {}
  GPTOSS_INLINE void fetch_next(Range, Share) const {}
  GPTOSS_INLINE TileView tile(std::int64_t step, int, const std::byte*) const {
    const bf16* at = data + step * kTileDepth;
    GPTOSS_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      __builtin_prefetch(at + r * stride + kBf16LaneAhead / 2, 0, 2);
    }
    return {reinterpret_cast<const std::byte*>(at), 2 * stride};
  }
};

// A product with dense weights: rows [row, row + 16 * kRowTiles) for all packed tokens.
template <int kRowTiles, typename Weights, typename Args>
GPTOSS_INLINE void dense_panel(const Args& args, const Weights& weights, const TokenTiles& x,
                               std::int64_t first_token, Range rows, const AmxScratch& scratch) {
  multiply_panel<kRowTiles>(weights, x, scratch);
  finish_panel<kRowTiles>(scratch, x.count, rows.size(),
                          args.bias != nullptr ? args.bias + rows.begin : nullptr, args.epilogue,
                          [&](std::int64_t token) __attribute__((always_inline)) {
                            return args.out.row(first_token + token) + rows.begin;
                          });
}

// The rows that make sixteen equal lanes, for a tile of tokens or less; returns how many they are.
std::int64_t multiply_lanes(const LinearBf16Args& args, const TokenTiles& x,
                            std::int64_t first_token, Range rows, const AmxScratch& scratch) {
  if (x.tiles() > 1 || args.weight.cols % kTileDepth != 0) return 0;
  std::int64_t step = rows.size() / kTileRows;
  // Lanes a multiple of 4 KB apart meet in one set of the first-level cache: 16.0 instead of 16.6
  // GB/s. Where another row does not help, all rows are so.
  const std::int64_t row_bytes = 2 * args.weight.stride;
  if (step > kTileRows && step * row_bytes % 4096 == 0 && row_bytes % 4096 != 0) --step;
  for (std::int64_t row = rows.begin; row < rows.begin + step; ++row) {
    multiply_panel<1>(Bf16Lanes{args.weight.row(row), step * args.weight.stride}, x, scratch);
    for (std::int64_t t = 0; t < x.count; ++t) {
      float* out = args.out.row(first_token + t) + row;
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        float value = scratch.sums[r * kTileTokens + t];
        if (args.bias != nullptr) value += to_float(args.bias[row + r * step]);
        out[r * step] = args.epilogue == Epilogue::kAdd ? out[r * step] + value : value;
      }
    }
  }
  return step * kTileRows;
}

void linear_bf16_amx(const LinearBf16Args& args, Range rows, std::byte* memory) {
  const AmxScratch scratch = cut_amx_scratch(memory, args.weight.cols);
  constexpr std::int64_t kPanelRows = 2 * kTileRows;
  for (std::int64_t token = 0; token < args.x.rows; token += kAmxTokens) {
    const std::int64_t left = args.x.rows - token;
    const Range tokens{token, token + (left < kAmxTokens ? left : kAmxTokens)};
    const TokenTiles x = pack_float_tokens(args.x, tokens, scratch.tokens);
    const TileScope scope(x.width());
    const std::int64_t done = multiply_lanes(args, x, token, rows, scratch);
    for (std::int64_t row = rows.begin + done; row < rows.end; row += kPanelRows) {
      const Range panel{row, row + kPanelRows < rows.end ? row + kPanelRows : rows.end};
      const Bf16Tiles weights{args.weight.row(row), args.weight.stride, panel.size(),
                              args.weight.cols};
      if (panel.size() <= kTileRows) {
        dense_panel<1>(args, weights, x, token, panel, scratch);
      } else {
        dense_panel<2>(args, weights, x, token, panel, scratch);
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
