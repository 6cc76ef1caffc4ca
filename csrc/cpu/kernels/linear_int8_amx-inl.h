// linear_int8 on AMX: out [num_tokens][rows] = x [num_tokens][cols] (quantize_bf16) times packed
// dense weights [rows][cols] (pack_int8: 8.5 bits a weight), plus bias, stored or added. Reads the
// weights once for every kAmxTokens tokens.
//
// The arithmetic is that of linear_int8-inl.h on the same codes: for each block of 32 along K, acc
// = fma(dot * x_scale, w_scale, acc). Tiles hold dot * x_scale exactly (|dot| <= 32 * 127 * 4096 <
// 2^24, and a power of two), so few tokens go through the integers, and the bits are the same.
// Since scales of weights are no powers of two, every block's sum leaves its tile for a vector.
#pragma once

#include "cpu/kernels/amx_product-inl.h"
#include "cpu/kernels/int8_byte_tiles-inl.h"
#include "cpu/kernels/linear_int8-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// More tokens than this are faster on tiles of bf16. 40000 x 2880, one core of a Xeon, by integers
// and on tiles: 9 to 11 tokens by integers, 12 tokens 18.9 and 18.8 ms.
constexpr std::int64_t kInt8FewTokens = 11;
// Steps of weights and tokens, 1 KB each, that fit the first-level cache.
constexpr std::int64_t kInt8Steps = 15;
// Products in flight: a tile's sums are read so many steps after it was multiplied.
constexpr std::int64_t kInt8Lag = 3;
static_assert((kInt8Steps + 4) * kTileBytes <= kAmxPanelBytes);
static_assert(kInt8Offset == 128 && kInt8Group == 4 && kRowTile == kTileRows);

// Tokens as tiles A: [token tile][step][16][32] bf16, zeros where there are none.
GPTOSS_INLINE void pack_token_rows(const Bf16Activations& x, Range tokens, std::byte* out) {
  for (std::int64_t token = tokens.begin; token < tokens.end; token += kTileTokens) {
    for (std::int64_t col = 0; col < x.cols; col += kTileDepth, out += kTileBytes) {
      copy_bf16_tile(x.values + token * x.cols + col, x.cols, tokens.end - token, kTileDepth, out);
    }
  }
}

struct Int8TilePanel {
  const std::uint8_t* packed;  // the tile's first block of these steps
  const std::byte* weights;    // [steps] tiles B
  std::byte* products;         // [4] tiles C
  std::int64_t steps;
};

// sums[16 tokens][16 rows] += the panel times one tile of tokens.
GPTOSS_INLINE void multiply_int8_tile(const Int8TilePanel& in_memory, const std::byte* tokens,
                                      float* sums) {
  const Int8TilePanel panel = in_memory;  // stays in registers
  __m512 acc[kTileTokens];
  GPTOSS_UNROLL
  for (int t = 0; t < kTileTokens; ++t) acc[t] = _mm512_load_ps(sums + t * kTileRows);
  const auto multiply = [&]<int kC>(std::int64_t step) __attribute__((always_inline)) {
    load_tile<kA0>(tokens + step * kTileBytes, kTileRowBytes);
    load_tile<kB0>(panel.weights + step * kTileBytes, kTileRowBytes);
    zero_tile<kC>();
    add_tile_product<kC, kA0, kB0>();
    store_tile<kC>(panel.products + kC * kTileBytes, kTileRowBytes);
  };
  const auto add = [&](std::int64_t step) __attribute__((always_inline)) {
    const auto* scales = reinterpret_cast<const bf16*>(panel.packed + step * kPackedBlockBytes);
    const __m512 scale = load_row_bf16(scales);
    const auto* products = reinterpret_cast<const float*>(panel.products + step % 4 * kTileBytes);
    GPTOSS_UNROLL
    for (int t = 0; t < kTileTokens; ++t) {
      acc[t] = _mm512_fmadd_ps(_mm512_load_ps(products + t * kTileRows), scale, acc[t]);
    }
  };
  for (std::int64_t step = 0; step < panel.steps + kInt8Lag; step += 4) {
    const auto one = [&]<int kC>() __attribute__((always_inline)) {
      const std::int64_t done = step + kC - kInt8Lag;
      if (done >= 0 && done < panel.steps) add(done);
      if (step + kC < panel.steps) multiply.template operator()<kC>(step + kC);
    };
    one.template operator()<0>();
    one.template operator()<1>();
    one.template operator()<2>();
    one.template operator()<3>();
  }
  GPTOSS_UNROLL
  for (int t = 0; t < kTileTokens; ++t) _mm512_store_ps(sums + t * kTileRows, acc[t]);
}

// Sixteen rows for all tokens of a chunk.
void linear_int8_tiles(const LinearInt8Args& args, Range tokens, std::int64_t row,
                       const AmxScratch& scratch) {
  const std::int64_t num_blocks = args.weight.cols / kMxBlock;
  const std::int64_t tiles = (tokens.size() + kTileTokens - 1) / kTileTokens;
  const std::uint8_t* packed = args.weight.data + row / kRowTile * num_blocks * kPackedBlockBytes;
  for (std::int64_t i = 0; i < tiles * kTileTokens; ++i) {
    _mm512_store_ps(scratch.sums + i * kTileRows, _mm512_setzero_ps());
  }
  std::byte* products = scratch.panel + kInt8Steps * kTileBytes;
  for (std::int64_t begin = 0; begin < num_blocks; begin += kInt8Steps) {
    const std::int64_t left = num_blocks - begin;
    const Int8TilePanel panel{packed + begin * kPackedBlockBytes, scratch.panel, products,
                              left < kInt8Steps ? left : kInt8Steps};
    for (std::int64_t step = 0; step < panel.steps; ++step) {
      const std::uint8_t* block = panel.packed + step * kPackedBlockBytes;
      expand_int8_tile(block + kPackedScaleBytes, scratch.panel + step * kTileBytes);
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      multiply_int8_tile(panel, scratch.tokens + (tile * num_blocks + begin) * kTileBytes,
                         scratch.sums + tile * kTileTokens * kTileRows);
    }
  }
  for (std::int64_t t = 0; t < tokens.size(); ++t) {
    finish_tile(scratch.sums + t * kTileRows, args.bias != nullptr ? args.bias + row : nullptr,
                args.epilogue, args.out.row(tokens.begin + t) + row, args.weight.rows - row);
  }
}

// A block's sum is at most 2^24 units and must be finite.
GPTOSS_INLINE bool fits_int8_tiles(const UnitRange& units) {
  return units.largest < 127 - 24;
}

void linear_int8_amx(const LinearInt8Args& args, Range rows, std::byte* memory) {
  const Bf16Activations& x = args.x_bf16;
  const AmxScratch scratch = cut_amx_scratch(memory, x.cols);
  static_assert(kByteTileMinTokens == 7 && kByteTileTokens == 8);
  if (x.rows == 7) return linear_int8_bytes<7>(args, 0, rows, scratch);
  if (x.rows == 8) return linear_int8_bytes<8>(args, 0, rows, scratch);
  const UnitRange units =
      unit_range(x, {0, x.rows}, [](std::int64_t t) __attribute__((always_inline)) { return t; });
  if (x.rows <= kInt8FewTokens || !fits_int8_tiles(units)) {
    LinearInt8Args integers = args;
    integers.x = {x.codes, x.scales, x.sums, x.rows, x.cols};
    return linear_int8(integers, rows, memory);
  }
  const TileScope scope(kTileTokens);
  for (std::int64_t token = 0; token < x.rows; token += kAmxTokens) {
    const std::int64_t left = x.rows - token;
    const Range tokens{token, token + (left < kAmxTokens ? left : kAmxTokens)};
    pack_token_rows(x, tokens, scratch.tokens);
    for (std::int64_t row = rows.begin; row < rows.end; row += kTileRows) {
      linear_int8_tiles(args, tokens, row, scratch);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
