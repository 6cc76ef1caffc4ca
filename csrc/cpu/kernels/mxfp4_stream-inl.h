// MXFP4 products of few tokens: each lane of a tile walks its own part of the rows, so that the
// memory sees kRowTile long streams, and products come straight from the decoded registers.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/int8_product-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// The stored bytes of kRowTile rows, `row_step` rows apart.
struct MxTile {
  const std::uint8_t* blocks;
  const std::uint8_t* scales;
  std::int64_t num_blocks;  // a row
  std::int64_t row_step;

  GPTOSS_INLINE std::int64_t codes_stride() const { return row_step * num_blocks * kMxBlockBytes; }
  GPTOSS_INLINE void load_codes(std::int64_t block, RowBytes (&codes)[4]) const {
    load_row_dwords(blocks + block * kMxBlockBytes, codes_stride(), codes);
  }
};

GPTOSS_INLINE MxTile mx_tile(const MxMatrix& weight, std::int64_t row, std::int64_t row_step = 1) {
  const std::int64_t num_blocks = weight.blocks_per_row();
  return {weight.blocks + row * num_blocks * kMxBlockBytes, weight.scales + row * num_blocks,
          num_blocks, row_step};
}

// Scales of blocks [block, block + kBlockStep) to out[kBlockStep][out_stride]; those past the last
// block are unspecified. Reads 16 bytes a row, the last 16 where fewer are left.
inline void load_scales(const MxTile& tile, std::int64_t block, float* out,
                        std::int64_t out_stride) {
  static_assert(kBlockStep == 16);
  const std::int64_t stride = tile.row_step * tile.num_blocks;
  RowBytes bytes[4];
  std::int64_t begin = block;
  if (tile.num_blocks >= kBlockStep) {
    if (begin > tile.num_blocks - kBlockStep) begin = tile.num_blocks - kBlockStep;
    load_row_dwords(tile.scales + begin, stride, bytes);
  } else {
    std::uint8_t copy[kRowTile * kBlockStep] = {};
    for (std::int64_t r = 0; r < kRowTile; ++r) {
      for (std::int64_t b = 0; b < tile.num_blocks; ++b) {
        copy[r * kBlockStep + b] = tile.scales[r * stride + b];
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

// Few tokens: lane r of a tile takes the rows of the r-th part of a range, one after another. Long
// streams in kRowTile places keep the processor's own prefetcher at work in as many pages, which it
// does not leave; one stream leaves it idle at each page's start. One token, 2880 columns, one core
// of a Xeon whose plain read loop does 9.6 GB/s on pages of 4 KB and 16.6 with the best pattern:
// 15.6 GB/s so, 12.1 with sixteen adjacent rows at a time.
struct LaneStreams {
  std::int64_t begin;  // of the first lane's rows
  std::int64_t rows;   // of each lane

  explicit LaneStreams(Range range) : begin(range.begin), rows(range.size() / kRowTile) {}
};

// Bytes that each lane's stream is fetched ahead.
constexpr std::int64_t kLaneAhead = 512;

// The scales of the next tile: the first line of each row is at hand, its predecessor ends there.
GPTOSS_INLINE void fetch_next_scales(const MxTile& tile) {
  for (std::int64_t r = 0; r < kRowTile; ++r) {
    const std::uint8_t* next = tile.scales + (r * tile.row_step + 1) * tile.num_blocks;
    for (std::int64_t b = tile.num_blocks - 1; b >= 0; b -= 64) __builtin_prefetch(next + b, 0, 2);
  }
}

// Weights decoded on the fly, one tile.
struct MxStream {
  MxTile tile;
  std::int64_t first_block;
  const float* scales;  // [kBlockStep][kRowTile], from first_block on

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
    const std::uint8_t* ahead = tile.blocks + b / 4 * 64 + kLaneAhead;
    for (std::int64_t i = 0; i < kRowTile / 4; ++i) {
      __builtin_prefetch(ahead + (b % 4 * (kRowTile / 4) + i) * tile.codes_stride(), 0, 2);
    }
    return out;
  }
};

// out[out_row] at the rows of a tile = acc + bias.
GPTOSS_INLINE void finish_lanes(const LinearMxfp4Args& args, const float* acc, std::int64_t row,
                                const LaneStreams& lanes, std::int64_t out_row) {
  float* out = args.out.row(out_row);
  for (std::int64_t r = 0; r < kRowTile; ++r, row += lanes.rows) {
    out[row] = acc[r] + to_float(args.bias[row]);
  }
}

struct MxPanelArgs {
  const LinearMxfp4Args& linear;
  TokenGroups groups;
  std::int64_t first;      // of x_rows and out_rows
  std::int64_t first_row;  // of the weight
  Int8Scratch scratch;
};

// One tile of rows, `lanes.rows` apart, for one group of tokens.
void stream_mx_tile(const MxPanelArgs& args, const LaneStreams& lanes) {
  const MxTile tile = mx_tile(args.linear.weight, args.first_row, lanes.rows);
  const std::int64_t num_tokens = args.groups.count;
  float* acc = args.scratch.acc;
  clear(acc, num_tokens * kRowTile);
  fetch_next_scales(tile);
  alignas(64) float scales[kBlockStep * kRowTile];
  for (std::int64_t b = 0; b < tile.num_blocks; b += kBlockStep) {
    const std::int64_t count = b + kBlockStep < tile.num_blocks ? kBlockStep : tile.num_blocks - b;
    load_scales(tile, b, scales, kRowTile);
    const MxStream weights{tile, b, scales};
    const Int8Tokens tokens{args.scratch.tokens + b * num_tokens * Int8Tokens::kBlockBytes};
    multiply<1>(weights, tokens, num_tokens, count, acc);
  }
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    finish_lanes(args.linear, acc + t * kRowTile, args.first_row, lanes,
                 args.linear.out_rows[args.first + t]);
  }
}

// One token's activations in strips, the last of which overlaps the one before it so that nothing
// is read beyond a row.
struct StripToken {
  std::int8_t* x;      // [num_strips][2][kStripBlocks][16]
  std::int32_t* init;  // [num_strips][kStripBlocks][4]
  float* scales;       // [num_blocks], halved
};

GPTOSS_INLINE std::int64_t strip_begin(std::int64_t strip, std::int64_t num_blocks) {
  const std::int64_t begin = strip * kStripBlocks;
  return begin + kStripBlocks <= num_blocks ? begin : num_blocks - kStripBlocks;
}

inline StripToken pack_strips(const Int8Activations& x, std::int64_t row, std::byte* scratch) {
  const std::int64_t num_blocks = x.cols / kMxBlock;
  const std::int64_t num_strips = (num_blocks + kStripBlocks - 1) / kStripBlocks;
  // 52 bytes a block and a few: less than a chunk of tokens takes.
  StripToken out;
  out.x = reinterpret_cast<std::int8_t*>(scratch);
  scratch += align_up(num_strips * kStripBlocks * kMxBlock);
  out.init = reinterpret_cast<std::int32_t*>(scratch);
  scratch += align_up(num_strips * kStripBlocks * 16);
  out.scales = reinterpret_cast<float*>(scratch);
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

// One tile of rows, `lanes.rows` apart, for one token: a cache line or less of every row at a time.
void multiply_strips(const LinearMxfp4Args& args, const StripToken& token, std::int64_t row,
                     const LaneStreams& lanes) {
  const MxTile tile = mx_tile(args.weight, row, lanes.rows);
  const std::int64_t stride = tile.codes_stride();
  const std::int64_t num_blocks = tile.num_blocks;
  fetch_next_scales(tile);
  RowFloats acc = zero_row_floats();
  alignas(64) float scales[kBlockStep * kRowTile];
  static_assert(kBlockStep % kStripBlocks == 0);
  for (std::int64_t first = 0; first < num_blocks; first += kStripBlocks) {
    if (first % kBlockStep == 0) load_scales(tile, first, scales, kRowTile);
    const std::int64_t strip = first / kStripBlocks;
    const std::int64_t begin = strip_begin(strip, num_blocks);
    StripDots dots[kRowTile / 4];
#pragma GCC unroll 4
    for (int i = 0; i < kRowTile / 4; ++i) {
      const std::uint8_t* codes = tile.blocks + begin * kMxBlockBytes + 4 * i * stride;
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) __builtin_prefetch(codes + r * stride + kLaneAhead, 0, 2);
      dots[i] = dot_strip(codes, stride, token.x + strip * kStripBlocks * kMxBlock,
                          token.init + strip * kStripBlocks * 4);
    }
    RowInts dot[kStripBlocks];
    dots_by_block(dots, dot);
#pragma GCC unroll 4
    for (int i = 0; i < kStripBlocks; ++i) {
      const std::int64_t b = begin + i;
      if (b < first) continue;  // of the strip before
      acc = add_scaled_dot(acc, dot[i], token.scales[b],
                           load_row_floats(scales + b % kBlockStep * kRowTile));
    }
  }
  alignas(64) float sums[kRowTile];
  store_row_floats(sums, acc);
  finish_lanes(args, sums, row, lanes, args.out_rows[0]);
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
