// linear_int8: out [num_tokens][rows] = x [num_tokens][cols] (quantize_int15: blocks of 32 with a
// scale) times packed dense weights [rows][cols] (pack_int8: 8.5 bits a weight), plus bias, stored
// or added. Reads the weights once for every 128 tokens; 32 multiply-adds an output and block,
// exact in int32.
//
// Activations of 8 bits would double the error variance of these products. 15 cost AVX-512 twice
// the dot instructions, two planes of signed bytes; AVX2 nothing, whose byte products saturate and
// take as many instructions as its int16 ones.
//
// Few tokens: one group, tiles stream in order at memory speed. More: all groups of a chunk go
// through kBlockStep blocks of a pair of tiles while these are in the first-level cache, and fetch
// the next ones meanwhile.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/int8_product-inl.h"
#include "cpu/kernels/pack_int8-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Tiles as pack_int8 writes them, from some block on.
struct PackedTiles {
  const std::uint8_t* data;
  std::int64_t tile_stride;        // bytes
  std::int64_t prefetch_distance;  // bytes ahead to fetch; 0: none

  struct Block {
    const std::uint8_t* data;
    std::int64_t tile_stride;

    GPTOSS_INLINE const std::uint8_t* codes(int tile) const {
      return data + tile * tile_stride + kPackedScaleBytes;
    }
    GPTOSS_INLINE RowBytes plane(int tile, int index) const {
      return load_row_bytes(codes(tile) + index * 4 * kRowTile);
    }
    GPTOSS_INLINE RowFloats scale(int tile) const {
      return load_row_bf16(reinterpret_cast<const bf16*>(data + tile * tile_stride));
    }
  };
  GPTOSS_INLINE Block block(std::int64_t index) const {
    const std::uint8_t* p = data + index * kPackedBlockBytes;
    if (prefetch_distance != 0) prefetch(p + prefetch_distance, kPackedBlockBytes);
    return {p, tile_stride};
  }
};

// How far a stream of weights is fetched ahead of its use.
constexpr std::int64_t kStreamAhead = 8192;

struct Int8PanelArgs {
  const LinearInt8Args& linear;
  TokenGroups groups;
  std::int64_t first_token;
  std::int64_t first_row;
  Int8Scratch scratch;
};

// kTiles tiles of rows for one chunk of tokens.
template <int kTiles>
void linear_int8_panel(const Int8PanelArgs& args) {
  const LinearInt8Args& linear = args.linear;
  const TokenGroups groups = args.groups;
  const std::int64_t num_blocks = linear.x.cols / kMxBlock;
  const std::int64_t tile_bytes = num_blocks * kPackedBlockBytes;
  const std::uint8_t* data = linear.weight.data + args.first_row / kRowTile * tile_bytes;
  constexpr std::int64_t kTokenFloats = kTiles * kRowTile;
  clear(args.scratch.acc, groups.count * kTokenFloats);

  const bool stream = groups.groups == 1;
  const std::int64_t step = stream ? num_blocks : kBlockStep;
  for (std::int64_t b = 0; b < num_blocks; b += step) {
    const std::int64_t count = b + step < num_blocks ? step : num_blocks - b;
    const PackedTiles weights{data + b * kPackedBlockBytes, tile_bytes, stream ? kStreamAhead : 0};
    const std::int64_t step_bytes = count * kPackedBlockBytes;
    for (std::int64_t group = 0; group < groups.groups; ++group) {
      const std::int64_t begin = groups.begin(group);
      const std::int64_t size = groups.size(group);
      if (!stream) {  // the next step's bytes, a share with each group
        const std::int64_t from = step_bytes * group / groups.groups;
        const std::int64_t bytes = step_bytes * (group + 1) / groups.groups - from;
        for (int tile = 0; tile < kTiles; ++tile) {
          prefetch(weights.data + tile * tile_bytes + step_bytes + from, bytes);
        }
      }
      const std::int64_t token = args.first_token + begin;
      const std::int64_t first_block = token * num_blocks + b;
      const Int15Tokens tokens{linear.x.codes + first_block * kMxBlock,
                               linear.x.scales + first_block, linear.x.sums + first_block,
                               num_blocks};
      multiply<kTiles>(weights, tokens, size, count, args.scratch.acc + begin * kTokenFloats);
    }
  }

  for (std::int64_t group = 0; group < groups.groups; ++group) {
    const std::int64_t size = groups.size(group);
    const float* acc = args.scratch.acc + groups.begin(group) * kTokenFloats;
    for (std::int64_t t = 0; t < size; ++t) {
      float* out = linear.out.row(args.first_token + groups.begin(group) + t);
      for (int tile = 0; tile < kTiles; ++tile) {
        const std::int64_t row = args.first_row + tile * kRowTile;
        finish_tile(acc + (tile * size + t) * kRowTile,
                    linear.bias != nullptr ? linear.bias + row : nullptr, linear.epilogue,
                    out + row, linear.weight.rows - row);
      }
    }
  }
}

void linear_int8(const LinearInt8Args& args, Range rows, std::byte* scratch) {
  for (std::int64_t first = 0; first < args.x.rows; first += kTokenChunk) {
    const std::int64_t left = args.x.rows - first;
    const TokenGroups groups = token_groups(left < kTokenChunk ? left : kTokenChunk);
    const Int8Scratch space = cut_scratch(scratch);
    std::int64_t row = rows.begin;
    if (groups.groups > 1) {
      for (; row + (kPanelTiles - 1) * kRowTile < rows.end; row += kPanelTiles * kRowTile) {
        linear_int8_panel<kPanelTiles>({args, groups, first, row, space});
      }
    }
    for (; row < rows.end; row += kRowTile) {
      linear_int8_panel<1>({args, groups, first, row, space});
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
