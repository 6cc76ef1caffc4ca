// linear_int8 of a few tokens on tiles of bytes: packed codes are a tile B as they lie, so nothing
// is expanded.
//
// Dense int8 4096 x 2880 of 8 tokens, two cores of a Xeon whose read loops do 38 GB/s: 28 GB/s so,
// 16.1 by VNNI.
#pragma once

#include "cpu/kernels/byte_tokens-inl.h"
#include "cpu/kernels/linear_int8-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Fewer are faster by VNNI: 5 tokens 28.3 GB/s and 26.2 so, 6 tokens 27.2 and 26.1.
constexpr int kByteTileMinTokens = 7;
// Tiles of rows side by side, each a stream of memory.
constexpr int kByteTiles = 2;
// Blocks from a tile's product to the reading of its sums.
constexpr std::int64_t kByteLag = 2;
// Bytes that each stream is fetched ahead, to L1: 1024 to L2 are a tenth slower.
constexpr std::int64_t kByteAhead = 2048;
static_assert(kInt8Offset == 128 && kInt8Group == 4 && kRowTile == kTileRows);

static_assert((kByteLag + 1) * kByteTiles * ByteTokens<kByteTileTokens>::kProduct <=
              kAmxPanelBytes);

// Tokens [first, first + kTokens).
template <int kTokens>
ByteTokens<kTokens> pack_byte_tokens(const Bf16Activations& x, std::int64_t first, std::byte* out) {
  const ByteTokens<kTokens> tokens{out};
  const std::int64_t num_blocks = x.cols / kMxBlock;
  for (std::int64_t b = 0; b < num_blocks; ++b, out += ByteTokens<kTokens>::kBlock) {
    auto* scales = reinterpret_cast<float*>(out + ByteTokens<kTokens>::kCodes);
    auto* offsets = reinterpret_cast<std::int32_t*>(scales + kTokens);
    for (int t = 0; t < kTokens; ++t) {
      const std::int64_t block = (first + t) * num_blocks + b;
      const auto* codes = reinterpret_cast<const std::byte*>(x.codes + block * kMxBlock);
      __builtin_memcpy(out + t * kMxBlock, codes, kMxBlock);
      __builtin_memcpy(out + (kTokens + t) * kMxBlock, codes + kMxBlock, kMxBlock);
      scales[t] = x.scales[block];
      offsets[t] = kInt8Offset * x.sums[block];
    }
  }
  return tokens;
}

// kTiles tiles of sixteen rows, `step` bytes apart.
template <int kTiles>
struct PackedStreams {
  const std::uint8_t* data;
  std::int64_t step;
  std::int64_t num_blocks;

  GPTOSS_INLINE const std::uint8_t* block(int tile, std::int64_t index) const {
    return data + tile * step + index * kPackedBlockBytes;
  }
};

// Products of block `index` with all tokens, to `out` [kTiles][high, low][kTokens][16 rows].
template <int kTiles, int kTokens>
GPTOSS_INLINE void multiply_byte_block(const PackedStreams<kTiles>& weights,
                                       const ByteTokens<kTokens>& tokens, std::int64_t index,
                                       std::byte* out) {
  const auto multiply = [&]<int kTile>() __attribute__((always_inline)) {
    const std::uint8_t* block = weights.block(kTile, index);
    for (std::int64_t i = 0; i < kPackedBlockBytes; i += 64) {
      __builtin_prefetch(block + kByteAhead + i, 0, 3);
    }
    constexpr int kB = kTile == 0 ? kB0 : kB1;
    load_tile<kB>(block + kPackedScaleBytes, kTileRowBytes);
    zero_tile<kTile>();
    add_byte_tile_product<kTile, kA0, kB>();
    store_tile<kTile>(out + kTile * ByteTokens<kTokens>::kProduct, kTileRowBytes);
  };
  load_tile<kA0>(tokens.codes(index), kMxBlock);
  multiply.template operator()<0>();
  if constexpr (kTiles == 2) multiply.template operator()<1>();
}

// acc[tile][token] += the products of block `index`.
template <int kTiles, int kTokens>
GPTOSS_INLINE void add_byte_products(const PackedStreams<kTiles>& weights,
                                     const ByteTokens<kTokens>& tokens, std::int64_t index,
                                     const std::byte* products, __m512 (&acc)[kTiles][kTokens]) {
  __m512 w_scale[kTiles];
  GPTOSS_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    w_scale[tile] = load_row_bf16(reinterpret_cast<const bf16*>(weights.block(tile, index)));
  }
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    GPTOSS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      acc[tile][t] = tokens.add(acc[tile][t], products + tile * ByteTokens<kTokens>::kProduct,
                                index, t, w_scale[tile]);
    }
  }
}

// Tiles of rows that begin at `row` and kTiles streams, `step` rows apart.
template <int kTiles, int kTokens>
void byte_tiles(const LinearInt8Args& args, std::int64_t first, std::int64_t row, std::int64_t step,
                const ByteTokens<kTokens>& tokens, std::byte* products) {
  const std::int64_t num_blocks = args.weight.cols / kMxBlock;
  const std::int64_t tile_bytes = num_blocks * kPackedBlockBytes;
  const PackedStreams<kTiles> weights{args.weight.data + row / kRowTile * tile_bytes,
                                      step / kRowTile * tile_bytes, num_blocks};
  __m512 acc[kTiles][kTokens];
  GPTOSS_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) acc[tile][t] = _mm512_setzero_ps();
  }
  const auto place = [&](std::int64_t block) __attribute__((always_inline)) {
    return products + block % (kByteLag + 1) * (kTiles * ByteTokens<kTokens>::kProduct);
  };
  for (std::int64_t b = 0; b < num_blocks + kByteLag; ++b) {
    if (b < num_blocks) multiply_byte_block(weights, tokens, b, place(b));
    const std::int64_t done = b - kByteLag;
    if (done >= 0) add_byte_products(weights, tokens, done, place(done), acc);
  }
  alignas(64) float sums[kRowTile];
  for (int tile = 0; tile < kTiles; ++tile) {
    const std::int64_t at = row + tile * step;
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      _mm512_store_ps(sums, acc[tile][t]);
      finish_tile(sums, args.bias != nullptr ? args.bias + at : nullptr, args.epilogue,
                  args.out.row(first + t) + at, args.weight.rows - at);
    }
  }
}

// Tokens [first, first + kTokens).
template <int kTokens>
void linear_int8_bytes(const LinearInt8Args& args, std::int64_t first, Range rows,
                       const AmxScratch& scratch) {
  const ByteTokens<kTokens> tokens = pack_byte_tokens<kTokens>(args.x_bf16, first, scratch.tokens);
  const ByteTileScope<kTokens> scope;
  const std::int64_t tiles = (rows.size() + kRowTile - 1) / kRowTile;
  const std::int64_t step = tiles / kByteTiles * kRowTile;
  std::int64_t row = rows.begin;
  for (; row < rows.begin + step; row += kRowTile) {
    byte_tiles<kByteTiles>(args, first, row, step, tokens, scratch.panel);
  }
  for (row = rows.begin + kByteTiles * step; row < rows.end; row += kRowTile) {
    byte_tiles<1>(args, first, row, 0, tokens, scratch.panel);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
