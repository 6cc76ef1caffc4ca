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

// Tiles in place but for the last columns.
struct Bf16TilesInPlace {
  Bf16Tiles all;

  GPTOSS_INLINE bool in_place(std::int64_t step) const {
    return (step + 1) * kTileDepth <= all.cols;
  }
  GPTOSS_INLINE void fill(std::int64_t step, int row_tile, std::byte* to) const {
    if (!in_place(step)) all.fill(step, row_tile, to);
  }
  GPTOSS_INLINE void fetch_next(Range, Share) const {}  // the processor sees sixteen streams
  GPTOSS_INLINE TileView tile(std::int64_t step, int row_tile, const std::byte* filled) const {
    if (!in_place(step)) return all.tile(step, row_tile, filled);
    const bf16* at = all.data + row_tile * kTileRows * all.stride + step * kTileDepth;
    return {reinterpret_cast<const std::byte*>(at),
            all.stride * static_cast<std::int64_t>(sizeof(bf16))};
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

void linear_bf16_amx(const LinearBf16Args& args, Range rows, std::byte* memory) {
  const AmxScratch scratch = cut_amx_scratch(memory);
  for (std::int64_t token = 0; token < args.x.rows; token += kAmxTokens) {
    const std::int64_t left = args.x.rows - token;
    const Range tokens{token, token + (left < kAmxTokens ? left : kAmxTokens)};
    const TokenTiles x = pack_float_tokens(args.x, tokens, scratch.tokens);
    const TileScope scope(x.width());
    const bool few = x.tiles() == 1;
    const std::int64_t panel_rows = few ? kTileRows : 2 * kTileRows;
    for (std::int64_t row = rows.begin; row < rows.end; row += panel_rows) {
      const Range panel{row, row + panel_rows < rows.end ? row + panel_rows : rows.end};
      const Bf16Tiles weights{args.weight.row(row), args.weight.stride, panel.size(),
                              args.weight.cols};
      if (few && panel.size() == kTileRows) {
        dense_panel<1>(args, Bf16TilesInPlace{weights}, x, token, panel, scratch);
      } else if (panel.size() <= kTileRows) {
        dense_panel<1>(args, weights, x, token, panel, scratch);
      } else {
        dense_panel<2>(args, weights, x, token, panel, scratch);
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
