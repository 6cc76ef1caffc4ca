// What the int8 products share: the activations of a chunk of tokens repacked in groups, the
// product of a group with one or two tiles of weights, and the epilogue.
//
// The arithmetic of an output, whatever the group, tile and share: for each block of 32 along K in
// order, acc = fma(float(dot) * x_scale, w_scale, acc), dot an exact int32; then + bias.
// |dot| <= 32 * 127 * 127 < 2^24, so float(dot) is exact too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/op_args.h"
#include "cpu/kernel_table.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kTileBlockCodes = kRowTile * kMxBlock;  // bytes of a block's codes in a tile
// Tokens repacked at a time: weights are decoded, or read from memory, once a chunk. 128 tokens of
// 2880 inputs are 460 KB, which stay in the second-level cache.
constexpr std::int64_t kTokenChunk = 128;
// Blocks along K that all groups of a chunk go through before the next blocks: two tiles of them
// are 18 KB, which stay in the first-level cache.
constexpr std::int64_t kBlockStep = 16;

// Of one token in one block: 32 bytes of q, the scale, the start of its sums.
constexpr std::int64_t kTokenBlockBytes = kMxBlock + sizeof(float) + sizeof(std::int32_t);

GPTOSS_INLINE std::int64_t align_up(std::int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// The private memory of one call, cut from the thread's scratch.
struct Int8Scratch {
  std::byte* tokens;    // groups: [group][block]{q [size][32], scale [size], init [size]}
  float* acc;           // [group][tile][size][kRowTile]
  std::uint8_t* panel;  // decoded weights: [kPanelTiles][kBlockStep]{scales, codes}
};

constexpr std::int64_t kDecodedBlockBytes =
    kRowTile * static_cast<std::int64_t>(sizeof(float)) + kTileBlockCodes;
constexpr std::int64_t kAccBytes =
    kTokenChunk * kPanelTiles * kRowTile * static_cast<std::int64_t>(sizeof(float));

std::size_t int8_scratch_bytes(std::int64_t cols) {
  const std::int64_t tokens = kTokenChunk * (cols / kMxBlock) * kTokenBlockBytes;
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

struct PackTokensArgs {
  const QuantizedMatrix& x;
  const std::int32_t* rows;  // of x, or null: first, first + 1, ...
  std::int64_t first;
  TokenGroups groups;
  float scale_factor;  // of x's scales, a power of two
};

template <bool kMxfp4>
void pack_tokens(const PackTokensArgs& args, std::byte* out) {
  const QuantizedMatrix& x = args.x;
  const std::int64_t num_blocks = x.cols / kMxBlock;
  for (std::int64_t group = 0; group < args.groups.groups; ++group) {
    const std::int64_t begin = args.groups.begin(group);
    const std::int64_t size = args.groups.size(group);
    for (std::int64_t t = 0; t < size; ++t) {
      const std::int64_t row = args.rows != nullptr ? args.rows[begin + t] : args.first + begin + t;
      const std::int8_t* q = x.q + row * x.cols;
      const float* scales = x.scales + row * num_blocks;
      const std::int32_t* sums = x.sums + row * num_blocks;
      std::byte* block = out + begin * num_blocks * kTokenBlockBytes;
      for (std::int64_t b = 0; b < num_blocks; ++b, block += size * kTokenBlockBytes) {
        const std::int8_t* bytes = q + b * kMxBlock;
        __builtin_memcpy(block + t * kMxBlock, bytes, kMxBlock);
        const float scale = scales[b] * args.scale_factor;
        const std::int32_t init =
            kMxfp4 ? start_of_mxfp4_dot(bytes, sums[b]) : start_of_int8_dot(bytes, sums[b]);
        __builtin_memcpy(block + size * kMxBlock + t * 4, &scale, sizeof scale);
        __builtin_memcpy(block + size * (kMxBlock + 4) + t * 4, &init, sizeof init);
      }
    }
  }
}

// acc [kTiles][kTokens][kRowTile] += blocks [0, num_blocks) of `weights` times a group's blocks.
template <int kTiles, int kTokens, typename Weights>
void multiply_group(const Weights& weights, const std::byte* tokens, std::int64_t num_blocks,
                    float* acc) {
  RowFloats sum[kTiles][kTokens];
#pragma GCC unroll 2
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      sum[tile][t] = load_row_floats(acc + (tile * kTokens + t) * kRowTile);
    }
  }
  for (std::int64_t b = 0; b < num_blocks; ++b, tokens += kTokens * kTokenBlockBytes) {
    const auto block = weights.block(b);
    const auto* x_scale = reinterpret_cast<const float*>(tokens + kTokens * kMxBlock);
    const auto* init = reinterpret_cast<const std::int32_t*>(x_scale + kTokens);
    RowInts dot[kTiles][kTokens];
    dot_block<kTiles, kTokens>(block, reinterpret_cast<const std::int8_t*>(tokens), init, dot);
#pragma GCC unroll 2
    for (int tile = 0; tile < kTiles; ++tile) {
      const RowFloats w_scale = block.scale(tile);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sum[tile][t] = add_scaled_dot(sum[tile][t], dot[tile][t], x_scale[t], w_scale);
      }
    }
  }
#pragma GCC unroll 2
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      store_row_floats(acc + (tile * kTokens + t) * kRowTile, sum[tile][t]);
    }
  }
}

// The same for a group of `size` tokens, 1 to kTokens.
template <int kTiles, typename Weights, int kTokens = kTokenGroup>
GPTOSS_INLINE void multiply(const Weights& weights, std::int64_t size, const std::byte* tokens,
                            std::int64_t num_blocks, float* acc) {
  if (size == kTokens) {
    multiply_group<kTiles, kTokens>(weights, tokens, num_blocks, acc);
  } else if constexpr (kTokens > 1) {
    multiply<kTiles, Weights, kTokens - 1>(weights, size, tokens, num_blocks, acc);
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
