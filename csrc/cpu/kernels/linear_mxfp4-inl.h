// linear_mxfp4_int8, linear_mxfp4_float32: out[out_rows[i]] = weight [rows][cols] times
// x[x_rows[i]], plus bias; MXFP4 weights as stored (4.25 bits), int8 activations in blocks of 32 or
// float32 ones. Reads the weights once for every 128 tokens (float32: kFloatTokens), and nothing
// beyond the matrix.
//
// A lane is a row. Few tokens: mxfp4_stream-inl.h. More: kBlockStep blocks of a pair of tiles are
// decoded once and multiplied with all groups of tokens.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/int8_product-inl.h"
#include "cpu/kernels/mxfp4_stream-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Decoded weights: blocks of {float scales [kRowTile], codes [8][kRowTile][4]}.
struct MxPanel {
  const std::uint8_t* data;

  struct Block {
    const std::uint8_t* data;

    GPTOSS_INLINE const std::uint8_t* at(int tile) const {
      return data + tile * kBlockStep * kDecodedBlockBytes;
    }
    GPTOSS_INLINE RowBytes plane(int tile, int index) const {
      return load_row_bytes(at(tile) + kRowTile * 4 * (index + 1));
    }
    GPTOSS_INLINE RowFloats scale(int tile) const {
      return load_row_floats(reinterpret_cast<const float*>(at(tile)));
    }
  };
  GPTOSS_INLINE Block block(std::int64_t index) const {
    return {data + index * kDecodedBlockBytes};
  }
};

// Blocks [block, block + count) of a tile to the layout of MxPanel.
inline void decode_blocks(const MxTile& tile, std::int64_t block, std::int64_t count,
                          std::uint8_t* out) {
  load_scales(tile, block, reinterpret_cast<float*>(out), kDecodedBlockBytes / 4);
  for (std::int64_t b = 0; b < count; ++b, out += kDecodedBlockBytes) {
    RowBytes codes[4];
    tile.load_codes(block + b, codes);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      store_row_bytes(out + kRowTile * 4 * (i + 1), decode_nibbles(codes[i / 2], i % 2));
    }
  }
}

template <int kTiles>
inline void finish_mx_panel(const MxPanelArgs& args) {
  for (std::int64_t group = 0; group < args.groups.groups; ++group) {
    const std::int64_t size = args.groups.size(group);
    const std::int64_t begin = args.groups.begin(group);
    const float* acc = args.scratch.acc + begin * kTiles * kRowTile;
    for (std::int64_t t = 0; t < size; ++t) {
      float* out = args.linear.out.row(args.linear.out_rows[args.first + begin + t]);
      for (int tile = 0; tile < kTiles; ++tile) {
        const std::int64_t row = args.first_row + tile * kRowTile;
        finish_tile(acc + (tile * size + t) * kRowTile, args.linear.bias + row, Epilogue::kStore,
                    out + row, kRowTile);
      }
    }
  }
}

// kTiles tiles of rows for all groups of a chunk of tokens.
template <int kTiles>
void multiply_mx_panel(const MxPanelArgs& args) {
  const TokenGroups groups = args.groups;
  const std::int64_t num_blocks = args.linear.weight.blocks_per_row();
  clear(args.scratch.acc, groups.count * kTiles * kRowTile);
  for (std::int64_t b = 0; b < num_blocks; b += kBlockStep) {
    const std::int64_t count = b + kBlockStep < num_blocks ? kBlockStep : num_blocks - b;
    for (int tile = 0; tile < kTiles; ++tile) {
      decode_blocks(mx_tile(args.linear.weight, args.first_row + tile * kRowTile), b, count,
                    args.scratch.panel + tile * kBlockStep * kDecodedBlockBytes);
    }
    // Where the next decoding starts: the same rows, or the next ones.
    const bool last = b + kBlockStep >= num_blocks;
    const MxTile next =
        mx_tile(args.linear.weight, args.first_row + (last ? kTiles * kRowTile : 0));
    const std::uint8_t* ahead = next.blocks + (last ? 0 : (b + kBlockStep) * kMxBlockBytes);
    for (std::int64_t group = 0; group < groups.groups; ++group) {
      const std::int64_t begin = groups.begin(group);
      const std::int64_t size = groups.size(group);
      for (std::int64_t r = kTiles * kRowTile * group / groups.groups;
           r < kTiles * kRowTile * (group + 1) / groups.groups; ++r) {
        prefetch(ahead + r * num_blocks * kMxBlockBytes, kBlockStep * kMxBlockBytes);
      }
      const std::int64_t first_block = begin * num_blocks + b * size;
      multiply<kTiles>(MxPanel{args.scratch.panel},
                       Int8Tokens{args.scratch.tokens + first_block * Int8Tokens::kBlockBytes},
                       size, count, args.scratch.acc + begin * kTiles * kRowTile);
    }
  }
  finish_mx_panel<kTiles>(args);
}

void linear_mxfp4_int8(const LinearMxfp4Args& args, Range rows, std::byte* scratch) {
  const Int8Scratch space = cut_scratch(scratch);
  if (args.num_rows == 1 && args.weight.blocks_per_row() >= kStripBlocks) {
    const StripToken token = pack_strips(args.x, args.x_rows[0], space.tokens);
    const LaneStreams lanes(rows);
    for (std::int64_t i = 0; i < lanes.rows; ++i) {
      multiply_strips(args, token, lanes.begin + i, lanes);
    }
    return;
  }
  for (std::int64_t first = 0; first < args.num_rows; first += kTokenChunk) {
    const std::int64_t left = args.num_rows - first;
    const TokenGroups groups = token_groups(left < kTokenChunk ? left : kTokenChunk);
    pack_int8_tokens(args.x, args.x_rows + first, groups, space.tokens);
    std::int64_t row = rows.begin;
    if (groups.groups == 1) {
      const LaneStreams lanes(rows);
      for (std::int64_t i = 0; i < lanes.rows; ++i) {
        stream_mx_tile({args, groups, first, lanes.begin + i, space}, lanes);
      }
      continue;
    }
    for (; row + (kPanelTiles - 1) * kRowTile < rows.end; row += kPanelTiles * kRowTile) {
      multiply_mx_panel<kPanelTiles>({args, groups, first, row, space});
    }
    for (; row < rows.end; row += kRowTile) {
      multiply_mx_panel<1>({args, groups, first, row, space});
    }
  }
}

// One tile times kTokens rows of float32: within a block, sums run along K in order; then
// acc = fma(sum, scale, acc).
template <int kTokens>
void multiply_float_tile(const LinearMxfp4Args& args, std::int64_t first, std::int64_t row) {
  const MxTile tile = mx_tile(args.weight, row);
  const float* x[kTokens];
  for (int t = 0; t < kTokens; ++t) x[t] = args.x_float.row(args.x_rows[first + t]);
  RowFloats acc[kTokens];
  for (int t = 0; t < kTokens; ++t) acc[t] = zero_row_floats();
  alignas(64) float scales[kBlockStep * kRowTile];
  for (std::int64_t b = 0; b < tile.num_blocks; ++b) {
    if (b % kBlockStep == 0) load_scales(tile, b, scales, kRowTile);
    RowBytes codes[4];
    tile.load_codes(b, codes);
    RowFloats sum[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[t] = zero_row_floats();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const RowFloats w = decode_nibble_floats(codes[j], i);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          sum[t] = fma_row_floats(w, x[t][b * kMxBlock + 8 * j + i], sum[t]);
        }
      }
    }
    const RowFloats scale = load_row_floats(scales + b % kBlockStep * kRowTile);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) acc[t] = fma_row_floats(sum[t], scale, acc[t]);
  }
  for (int t = 0; t < kTokens; ++t) {
    float* out = args.out.row(args.out_rows[first + t]) + row;
    store_row_floats(out, add_row_floats(acc[t], load_row_bf16(args.bias + row)));
  }
}

template <int kTokens = kFloatTokens>
GPTOSS_INLINE void multiply_float(const LinearMxfp4Args& args, std::int64_t first,
                                  std::int64_t count, std::int64_t row) {
  if (count == kTokens) {
    multiply_float_tile<kTokens>(args, first, row);
  } else if constexpr (kTokens > 1) {
    multiply_float<kTokens - 1>(args, first, count, row);
  }
}

void linear_mxfp4_float32(const LinearMxfp4Args& args, Range rows, std::byte*) {
  for (std::int64_t row = rows.begin; row < rows.end; row += kRowTile) {
    for (std::int64_t first = 0; first < args.num_rows; first += kFloatTokens) {
      const std::int64_t left = args.num_rows - first;
      multiply_float(args, first, left < kFloatTokens ? left : kFloatTokens, row);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
