// What the int8 products share: the activations of a group of tokens, the product of a group with
// one or two tiles of weights, and the epilogue.
//
// The arithmetic of an output, whatever the group, tile and share: for each block of 32 along K in
// order, acc = fma(float(dot) * x_scale, w_scale, acc), dot an exact int32; then + bias.
// MXFP4 weights times int8: |dot| <= 32 * 12 * 127 < 2^16, so float(dot) is exact too. Int8 weights
// times 15 bits: |dot| <= 32 * 127 * 16256 < 2^26, and float(dot) rounds to nearest even.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/op_args.h"
#include "cpu/kernel_table.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kTileBlockCodes = kRowTile * kMxBlock;  // bytes of a block's codes in a tile
// Tokens at a time: weights are decoded, or read from memory, once a chunk. 128 tokens of 2880
// inputs are 460 KB in int8 and 780 KB with 15 bits, which stay in the second-level cache.
constexpr std::int64_t kTokenChunk = 128;
// Blocks along K that all groups of a chunk go through before the next blocks: two tiles of them
// are 18 KB, which stay in the first-level cache.
constexpr std::int64_t kBlockStep = 16;

// Activations of a group of tokens, from some block on. Of int8, repacked: [block]{codes
// [size][32], scales [size], where the sums start [size]}.
struct Int8Tokens {
  static constexpr std::int64_t kBlockBytes = kMxBlock + sizeof(float) + sizeof(std::int32_t);
  const std::byte* data;

  // Products of block `index` with the weights of the same block.
  template <int kTiles, int kTokens, typename Block>
  GPTOSS_INLINE void dot(const Block& weights, std::int64_t index,
                         RowInts (&out)[kTiles][kTokens]) const {
    const std::byte* codes = data + index * kTokens * kBlockBytes;
    const std::byte* init = codes + kTokens * (kMxBlock + 4);
    dot_mxfp4_block<kTiles, kTokens>(weights, reinterpret_cast<const std::int8_t*>(codes),
                                     reinterpret_cast<const std::int32_t*>(init), out);
  }
  template <int kTokens>
  GPTOSS_INLINE float scale(std::int64_t index, int token) const {
    const std::byte* scales = data + index * kTokens * kBlockBytes + kTokens * kMxBlock;
    return reinterpret_cast<const float*>(scales)[token];
  }
};

// Of 15 bits, rows where they are.
struct Int15Tokens {
  const std::int16_t* codes;
  const float* scales;
  const std::int32_t* sums;
  std::int64_t num_blocks;  // a row

  template <int kTiles, int kTokens, typename Block>
  GPTOSS_INLINE void dot(const Block& weights, std::int64_t index,
                         RowInts (&out)[kTiles][kTokens]) const {
    dot_int8_block<kTiles, kTokens>(weights, codes + index * kMxBlock, sums + index, num_blocks,
                                    out);
  }
  template <int kTokens>
  GPTOSS_INLINE float scale(std::int64_t index, int token) const {
    return scales[token * num_blocks + index];
  }
};

GPTOSS_INLINE std::int64_t align_up(std::int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// The private memory of one call, cut from the thread's scratch.
struct Int8Scratch {
  std::byte* tokens;    // Int8Tokens, group after group
  float* acc;           // [group][tile][size][kRowTile]
  std::uint8_t* panel;  // decoded weights: [kPanelTiles][kBlockStep]{scales, codes}
};

constexpr std::int64_t kDecodedBlockBytes =
    kRowTile * static_cast<std::int64_t>(sizeof(float)) + kTileBlockCodes;
constexpr std::int64_t kAccBytes =
    kTokenChunk * kPanelTiles * kRowTile * static_cast<std::int64_t>(sizeof(float));
// Of the streams of few tokens, fewer sums.
static_assert(4 * kFourTileTokens <= kTokenChunk && 2 * kTwoTileTokens <= kTokenChunk);

std::size_t int8_scratch_bytes(std::int64_t cols) {
  const std::int64_t tokens = kTokenChunk * (cols / kMxBlock) * Int8Tokens::kBlockBytes;
  return static_cast<std::size_t>(64 + align_up(tokens) + kAccBytes +
                                  kPanelTiles * kBlockStep * kDecodedBlockBytes);
}

inline Int8Scratch cut_scratch(std::byte* scratch) {
  std::byte* p = scratch + (64 - reinterpret_cast<std::uintptr_t>(scratch) % 64) % 64;
  Int8Scratch out;
  out.acc = reinterpret_cast<float*>(p);
  out.panel = reinterpret_cast<std::uint8_t*>(p + kAccBytes);
  out.tokens = p + kAccBytes + kPanelTiles * kBlockStep * kDecodedBlockBytes;
  return out;
}

// Tokens [0, count) cut into groups of equal size, give or take one.
struct TokenGroups {
  std::int64_t count;
  std::int64_t groups;

  GPTOSS_INLINE std::int64_t begin(std::int64_t group) const { return count * group / groups; }
  GPTOSS_INLINE std::int64_t size(std::int64_t group) const {
    return begin(group + 1) - begin(group);
  }
};

GPTOSS_INLINE TokenGroups token_groups(std::int64_t count) {
  return {count, (count + kTokenGroup - 1) / kTokenGroup};
}

// Rows `rows` of x in groups, for MXFP4: half of its scales, since the weights' codes are doubled.
void pack_int8_tokens(const Int8Activations& x, const std::int32_t* rows, TokenGroups groups,
                      std::byte* out) {
  constexpr std::int64_t kBlockBytes = Int8Tokens::kBlockBytes;
  const std::int64_t num_blocks = x.cols / kMxBlock;
  for (std::int64_t group = 0; group < groups.groups; ++group) {
    const std::int64_t begin = groups.begin(group);
    const std::int64_t size = groups.size(group);
    for (std::int64_t t = 0; t < size; ++t) {
      const std::int64_t first_block = rows[begin + t] * num_blocks;
      std::byte* block = out + begin * num_blocks * kBlockBytes;
      for (std::int64_t b = 0; b < num_blocks; ++b, block += size * kBlockBytes) {
        const std::int8_t* q = x.q + (first_block + b) * kMxBlock;
        const float scale = 0.5f * x.scales[first_block + b];
        const std::int32_t init = start_of_mxfp4_dot(q, x.sums[first_block + b]);
        std::byte* rest = block + size * kMxBlock;
        __builtin_memcpy(block + t * kMxBlock, q, kMxBlock);
        __builtin_memcpy(rest + t * 4, &scale, sizeof scale);
        __builtin_memcpy(rest + (size + t) * 4, &init, sizeof init);
      }
    }
  }
}

// acc [kTiles][kTokens][kRowTile] += blocks [0, num_blocks) of `weights` times a group's blocks.
template <int kTiles, int kTokens, typename Weights, typename Tokens>
void multiply_group(const Weights& weights, const Tokens& tokens, std::int64_t num_blocks,
                    float* acc) {
  RowFloats sum[kTiles][kTokens];
#pragma GCC unroll 4
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      sum[tile][t] = load_row_floats(acc + (tile * kTokens + t) * kRowTile);
    }
  }
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    const auto block = weights.block(b);
    RowInts dot[kTiles][kTokens];
    tokens.template dot<kTiles, kTokens>(block, b, dot);
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile) {
      const RowFloats w_scale = block.scale(tile);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sum[tile][t] = add_scaled_dot(sum[tile][t], dot[tile][t],
                                      tokens.template scale<kTokens>(b, t), w_scale);
      }
    }
  }
#pragma GCC unroll 4
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      store_row_floats(acc + (tile * kTokens + t) * kRowTile, sum[tile][t]);
    }
  }
}

// The same for a group of `size` tokens, 1 to kTokens.
template <int kTiles, int kTokens = kTokenGroup, typename Weights, typename Tokens>
GPTOSS_INLINE void multiply(const Weights& weights, const Tokens& tokens, std::int64_t size,
                            std::int64_t num_blocks, float* acc) {
  if (size == kTokens) {
    multiply_group<kTiles, kTokens>(weights, tokens, num_blocks, acc);
  } else if constexpr (kTokens > 1) {
    multiply<kTiles, kTokens - 1>(weights, tokens, size, num_blocks, acc);
  }
}

GPTOSS_INLINE void clear(float* acc, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kRowTile) store_row_floats(acc + i, zero_row_floats());
}

GPTOSS_INLINE void prefetch(const std::uint8_t* begin, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(begin + i, 0, 2);
}

// One tile of one token: out = acc + bias, or out += acc + bias.
inline void finish_tile(const float* acc, const bf16* bias, Epilogue epilogue, float* out,
                        std::int64_t rows) {
  if (rows >= kRowTile) {
    RowFloats v = load_row_floats(acc);
    if (bias != nullptr) v = add_row_floats(v, load_row_bf16(bias));
    if (epilogue == Epilogue::kAdd) v = add_row_floats(load_row_floats(out), v);
    store_row_floats(out, v);
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const float v = bias != nullptr ? acc[r] + to_float(bias[r]) : acc[r];
    out[r] = epilogue == Epilogue::kAdd ? out[r] + v : v;
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
