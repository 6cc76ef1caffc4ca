// linear_mxfp4_int8, linear_mxfp4_float32: out[out_rows[i]] = weight [rows][cols] times
// x[x_rows[i]], plus bias; MXFP4 weights as stored (4.25 bits), int8 activations in blocks of 32 or
// float32 ones. Reads the weights once for every 128 tokens (float32: kFloatTokens), and nothing
// beyond the matrix.
//
// 16 bytes of each row of a tile are transposed so that a lane is a row. Few tokens: products
// straight from the decoded registers, while the next tile is fetched in order. More: kBlockStep
// blocks of a pair of tiles are decoded once and multiplied with all groups of tokens.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/int8_product-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// The stored bytes of one tile of rows.
struct MxTile {
  const std::uint8_t* blocks;
  const std::uint8_t* scales;
  std::int64_t num_blocks;  // a row

  GPTOSS_INLINE void load_codes(std::int64_t block, RowBytes (&codes)[4]) const {
    load_row_dwords(blocks + block * kMxBlockBytes, num_blocks * kMxBlockBytes, codes);
  }
};

GPTOSS_INLINE MxTile mx_tile(const MxMatrix& weight, std::int64_t row) {
  const std::int64_t num_blocks = weight.blocks_per_row();
  return {weight.blocks + row * num_blocks * kMxBlockBytes, weight.scales + row * num_blocks,
          num_blocks};
}

// Scales of blocks [block, block + kBlockStep) to out[kBlockStep][out_stride]; those past the last
// block are unspecified. Reads 16 bytes a row, the last 16 where fewer are left.
inline void load_scales(const MxTile& tile, std::int64_t block, float* out,
                        std::int64_t out_stride) {
  static_assert(kBlockStep == 16);
  RowBytes bytes[4];
  std::int64_t begin = block;
  if (tile.num_blocks >= kBlockStep) {
    if (begin > tile.num_blocks - kBlockStep) begin = tile.num_blocks - kBlockStep;
    load_row_dwords(tile.scales + begin, tile.num_blocks, bytes);
  } else {
    std::uint8_t copy[kRowTile * kBlockStep] = {};
    for (std::int64_t r = 0; r < kRowTile; ++r) {
      for (std::int64_t b = 0; b < tile.num_blocks; ++b) {
        copy[r * kBlockStep + b] = tile.scales[r * tile.num_blocks + b];
      }
    }
    load_row_dwords(copy, kBlockStep, bytes);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const std::int64_t index = begin + 4 * j + k - block;
      if (index >= 0) store_row_floats(out + index * out_stride, decode_scales(bytes[j], k));
    }
  }
}

// Weights decoded on the fly, one tile.
struct MxStream {
  MxTile tile;
  std::int64_t first_block;
  const float* scales;            // [kBlockStep][kRowTile], from first_block on
  const std::uint8_t* next_tile;  // same bytes of the next tile in memory order

  struct Block {
    RowBytes codes[4];
    const float* scales;

    GPTOSS_INLINE RowBytes plane(int, int index) const {
      return decode_nibbles(codes[index / 2], index % 2);
    }
    GPTOSS_INLINE RowFloats scale(int) const { return load_row_floats(scales); }
  };
  GPTOSS_INLINE Block block(std::int64_t index) const {
    Block out;
    tile.load_codes(first_block + index, out.codes);
    out.scales = scales + index * kRowTile;
    // Four rows a block, so that four blocks, which are a cache line of each row, fetch them all.
    const std::int64_t b = first_block + index;
    const std::uint8_t* ahead = next_tile + b / 4 * 64;
    for (std::int64_t i = 0; i < kRowTile / 4; ++i) {
      __builtin_prefetch(ahead + (b % 4 * (kRowTile / 4) + i) * tile.num_blocks * kMxBlockBytes, 0,
                         2);
    }
    return out;
  }
};

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

struct MxPanelArgs {
  const LinearMxfp4Args& linear;
  TokenGroups groups;
  std::int64_t first;      // of x_rows and out_rows
  std::int64_t first_row;  // of the weight
  Int8Scratch scratch;
};

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

// One tile of rows for one group of tokens.
void stream_mx_tile(const MxPanelArgs& args) {
  const MxTile tile = mx_tile(args.linear.weight, args.first_row);
  float* acc = args.scratch.acc;
  clear(acc, args.groups.count * kRowTile);
  alignas(64) float scales[kBlockStep * kRowTile];
  for (std::int64_t b = 0; b < tile.num_blocks; b += kBlockStep) {
    const std::int64_t count = b + kBlockStep < tile.num_blocks ? kBlockStep : tile.num_blocks - b;
    load_scales(tile, b, scales, kRowTile);
    const MxStream weights{tile, b, scales,
                           tile.blocks + kRowTile * tile.num_blocks * kMxBlockBytes};
    const Int8Tokens tokens{args.scratch.tokens + b * args.groups.count * Int8Tokens::kBlockBytes};
    multiply<1>(weights, tokens, args.groups.count, count, acc);
  }
  finish_mx_panel<1>(args);
}

// One token's activations in strips, the last of which overlaps the one before it so that nothing
// is read beyond a row.
struct StripToken {
  std::int8_t* x;      // [num_strips][2][kStripBlocks][16]
  std::int32_t* init;  // [num_strips][kStripBlocks][4]
  float* scales;       // [num_blocks], halved
  std::int32_t* dots;  // [kRowTile / 4][num_blocks + kStripBlocks][4 rows]
};

GPTOSS_INLINE std::int64_t strip_begin(std::int64_t strip, std::int64_t num_blocks) {
  const std::int64_t begin = strip * kStripBlocks;
  return begin + kStripBlocks <= num_blocks ? begin : num_blocks - kStripBlocks;
}

inline StripToken pack_strips(const Int8Activations& x, std::int64_t row, std::byte* scratch) {
  const std::int64_t num_blocks = x.cols / kMxBlock;
  const std::int64_t num_strips = (num_blocks + kStripBlocks - 1) / kStripBlocks;
  // 116 bytes a block and a few: less than a chunk of tokens takes.
  StripToken out;
  out.x = reinterpret_cast<std::int8_t*>(scratch);
  scratch += align_up(num_strips * kStripBlocks * kMxBlock);
  out.init = reinterpret_cast<std::int32_t*>(scratch);
  scratch += align_up(num_strips * kStripBlocks * 16);
  out.scales = reinterpret_cast<float*>(scratch);
  scratch += align_up(num_blocks * 4);
  out.dots = reinterpret_cast<std::int32_t*>(scratch);
  for (std::int64_t b = 0; b < num_blocks; ++b)
    out.scales[b] = 0.5f * x.scales[row * num_blocks + b];
  for (std::int64_t strip = 0; strip < num_strips; ++strip) {
    for (std::int64_t i = 0; i < kStripBlocks; ++i) {
      const std::int64_t b = row * num_blocks + strip_begin(strip, num_blocks) + i;
      std::int8_t* to = out.x + strip * kStripBlocks * kMxBlock + i * 16;
      for (int j = 0; j < 4; ++j) {
        __builtin_memcpy(to + 4 * j, x.q + b * kMxBlock + 8 * j, 4);
        __builtin_memcpy(to + kStripBlocks * 16 + 4 * j, x.q + b * kMxBlock + 8 * j + 4, 4);
      }
      std::int32_t* init = out.init + (strip * kStripBlocks + i) * 4;
      init[0] = -kMxfp4Offset * x.sums[b];
      init[1] = init[2] = init[3] = 0;
    }
  }
  return out;
}

// Rows fetched ahead to the second-level cache in the order of use: 89 to 95 % of the speed of a
// plain read loop (Sapphire Rapids, 2880 columns); 75 % in the order of addresses, 58 % with none.
constexpr std::int64_t kStripsAhead = 8;

// One tile of rows for one token.
void multiply_strips(const LinearMxfp4Args& args, const StripToken& token, std::int64_t row,
                     float* out) {
  const MxTile tile = mx_tile(args.weight, row);
  const std::int64_t num_blocks = tile.num_blocks;
  const std::int64_t row_bytes = num_blocks * kMxBlockBytes;
  const std::int64_t num_strips = (num_blocks + kStripBlocks - 1) / kStripBlocks;
  const std::int64_t dots_stride = (num_blocks + kStripBlocks) * 4;
  for (std::int64_t r = 0; r < kRowTile; r += 4) {
    const std::uint8_t* codes = tile.blocks + r * row_bytes;
    std::int32_t* dots = token.dots + r / 4 * dots_stride;
    for (std::int64_t strip = 0; strip < num_strips; ++strip) {
      const std::int64_t b = strip_begin(strip, num_blocks);
      for (std::int64_t i = 0; i < 4; ++i) {
        const std::uint8_t* ahead = codes + i * row_bytes + b * kMxBlockBytes;
        __builtin_prefetch(ahead + kStripsAhead * row_bytes, 0, 2);
        __builtin_prefetch(ahead + 4 * kStripBlocks * kMxBlockBytes, 0, 3);
      }
      dot_strip(codes + b * kMxBlockBytes, row_bytes, token.x + strip * kStripBlocks * kMxBlock,
                token.init + strip * kStripBlocks * 4, dots + b * 4);
    }
  }
  RowFloats acc = zero_row_floats();
  alignas(64) float scales[kBlockStep * kRowTile];
  static_assert(kBlockStep % kStripBlocks == 0);
  for (std::int64_t b = 0; b < num_blocks; b += kStripBlocks) {
    if (b % kBlockStep == 0) load_scales(tile, b, scales, kRowTile);
    RowInts dot[kStripBlocks];
    load_strip_dots(token.dots + b * 4, dots_stride, dot);
#pragma GCC unroll 4
    for (int i = 0; i < kStripBlocks; ++i) {
      if (b + i >= num_blocks) break;
      acc = add_scaled_dot(acc, dot[i], token.scales[b + i],
                           load_row_floats(scales + (b % kBlockStep + i) * kRowTile));
    }
  }
  store_row_floats(out + row, add_row_floats(acc, load_row_bf16(args.bias + row)));
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
    for (std::int64_t row = rows.begin; row < rows.end; row += kRowTile) {
      multiply_strips(args, token, row, args.out.row(args.out_rows[0]));
    }
    return;
  }
  for (std::int64_t first = 0; first < args.num_rows; first += kTokenChunk) {
    const std::int64_t left = args.num_rows - first;
    const TokenGroups groups = token_groups(left < kTokenChunk ? left : kTokenChunk);
    pack_int8_tokens(args.x, args.x_rows + first, groups, space.tokens);
    std::int64_t row = rows.begin;
    if (groups.groups == 1) {
      for (; row < rows.end; row += kRowTile) {
        stream_mx_tile({args, groups, first, row, space});
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
