// linear_int8: out [num_tokens][rows] = x [num_tokens][cols] (quantize_int15: blocks of 32 with a
// scale) times packed dense weights [rows][cols] (pack_int8: 8.5 bits a weight), plus bias, stored
// or added. Reads the weights once for every 128 tokens; 32 multiply-adds an output and block,
// exact in int32.
//
// Activations of 8 bits would double the error variance of these products. 15 cost AVX-512 twice
// the dot instructions, two planes of signed bytes; AVX2 nothing, whose byte products saturate and
// take as many instructions as its int16 ones.
//
// Few tokens: one group, several tiles side by side, each a stream of memory. More: all groups of a
// chunk go through kBlockStep blocks of a pair of tiles while these are in the first-level cache,
// and fetch the next ones meanwhile.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/int8_product-inl.h"
#include "cpu/kernels/pack_int8-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Tiles as pack_int8 writes them, from some block on.
template <int kTiles>
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
    for (int tile = 0; tile < kTiles && prefetch_distance != 0; ++tile) {
      const std::uint8_t* ahead = p + tile * tile_stride + prefetch_distance;
      for (std::int64_t i = 0; i < kPackedBlockBytes; i += 64) __builtin_prefetch(ahead + i, 0, 3);
    }
    return {p, tile_stride};
  }
};

// How far each of the streams of weights is fetched ahead of its use. One token, one core of a Xeon
// whose best read loop does 18.9 GB/s: two streams 16.7 GB/s, four 16.6, one 15.7; 1536 bytes ahead
// 16.6, 8192 14.7.
constexpr std::int64_t kStreamAhead = 1024;

struct Int8PanelArgs {
  const LinearInt8Args& linear;
  TokenGroups groups;
  std::int64_t first_token;
  std::int64_t first_row;
  Int8Scratch scratch;

  std::int64_t num_blocks() const { return linear.x.cols / kMxBlock; }
  std::int64_t tile_bytes() const { return num_blocks() * kPackedBlockBytes; }
  const std::uint8_t* tile() const {
    return linear.weight.data + first_row / kRowTile * tile_bytes();
  }
  Int15Tokens tokens(std::int64_t begin, std::int64_t block) const {
    const std::int64_t first = (first_token + begin) * num_blocks() + block;
    return {linear.x.codes + first * kMxBlock, linear.x.scales + first, linear.x.sums + first,
            num_blocks()};
  }
};

template <int kTiles>
GPTOSS_INLINE void finish_int8_group(const Int8PanelArgs& args, std::int64_t group) {
  const LinearInt8Args& linear = args.linear;
  const std::int64_t size = args.groups.size(group);
  const float* acc = args.scratch.acc + args.groups.begin(group) * kTiles * kRowTile;
  for (std::int64_t t = 0; t < size; ++t) {
    float* out = linear.out.row(args.first_token + args.groups.begin(group) + t);
    for (int tile = 0; tile < kTiles; ++tile) {
      const std::int64_t row = args.first_row + tile * kRowTile;
      finish_tile(acc + (tile * size + t) * kRowTile,
                  linear.bias != nullptr ? linear.bias + row : nullptr, linear.epilogue, out + row,
                  linear.weight.rows - row);
    }
  }
}

// kTiles tiles of rows, whole, for one group of at most kTokens tokens.
template <int kTiles, int kTokens>
void stream_int8_tiles(const Int8PanelArgs& args) {
  clear(args.scratch.acc, args.groups.count * kTiles * kRowTile);
  const PackedTiles<kTiles> weights{args.tile(), args.tile_bytes(), kStreamAhead};
  multiply<kTiles, kTokens>(weights, args.tokens(0, 0), args.groups.count, args.num_blocks(),
                            args.scratch.acc);
  finish_int8_group<kTiles>(args, 0);
}

// kTiles tiles of rows for one chunk of tokens.
template <int kTiles>
void linear_int8_panel(const Int8PanelArgs& args) {
  const TokenGroups groups = args.groups;
  const std::int64_t num_blocks = args.num_blocks();
  constexpr std::int64_t kTokenFloats = kTiles * kRowTile;
  clear(args.scratch.acc, groups.count * kTokenFloats);
  for (std::int64_t b = 0; b < num_blocks; b += kBlockStep) {
    const std::int64_t count = b + kBlockStep < num_blocks ? kBlockStep : num_blocks - b;
    const PackedTiles<kTiles> weights{args.tile() + b * kPackedBlockBytes, args.tile_bytes(), 0};
    const std::int64_t step_bytes = count * kPackedBlockBytes;
    for (std::int64_t group = 0; group < groups.groups; ++group) {
      // The next step's bytes, a share with each group.
      const std::int64_t from = step_bytes * group / groups.groups;
      const std::int64_t bytes = step_bytes * (group + 1) / groups.groups - from;
      for (int tile = 0; tile < kTiles; ++tile) {
        prefetch(weights.data + tile * args.tile_bytes() + step_bytes + from, bytes);
      }
      const std::int64_t begin = groups.begin(group);
      multiply<kTiles>(weights, args.tokens(begin, b), groups.size(group), count,
                       args.scratch.acc + begin * kTokenFloats);
    }
  }
  for (std::int64_t group = 0; group < groups.groups; ++group) {
    finish_int8_group<kTiles>(args, group);
  }
}

// The tiles that `rows` still has room for, kTiles at a time, for one group of at most kTokens.
template <int kTiles, int kTokens>
GPTOSS_INLINE void stream_int8_rows(Int8PanelArgs& args, std::int64_t end) {
  for (; args.first_row + (kTiles - 1) * kRowTile < end; args.first_row += kTiles * kRowTile) {
    stream_int8_tiles<kTiles, kTokens>(args);
  }
}

void linear_int8(const LinearInt8Args& args, Range rows, std::byte* scratch) {
  for (std::int64_t first = 0; first < args.x.rows; first += kTokenChunk) {
    const std::int64_t left = args.x.rows - first;
    const TokenGroups groups = token_groups(left < kTokenChunk ? left : kTokenChunk);
    Int8PanelArgs panel{args, groups, first, rows.begin, cut_scratch(scratch)};
    if (groups.groups == 1) {
      if constexpr (kFourTileTokens > 0) {
        if (groups.count <= kFourTileTokens) stream_int8_rows<4, kFourTileTokens>(panel, rows.end);
      }
      if constexpr (kTwoTileTokens > 0) {
        if (groups.count <= kTwoTileTokens) stream_int8_rows<2, kTwoTileTokens>(panel, rows.end);
      }
      stream_int8_rows<1, kTokenGroup>(panel, rows.end);
      continue;
    }
    for (; panel.first_row + (kPanelTiles - 1) * kRowTile < rows.end;
         panel.first_row += kPanelTiles * kRowTile) {
      linear_int8_panel<kPanelTiles>(panel);
    }
    for (; panel.first_row < rows.end; panel.first_row += kRowTile) linear_int8_panel<1>(panel);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
