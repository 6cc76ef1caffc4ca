// What the products on AMX tiles share: tokens packed once a call, weights brought into tiles once
// for every kAmxTokens tokens, two tiles of weights times two of tokens at a time, the epilogue.
//
// The arithmetic of an output: for each 32 k in order, what simd/amx.h says of TDPBF16PS; then +
// bias.
//
// Weights in tiles are 2 KB a step of k, and so are two tiles of tokens: kPanelSteps of both stay
// in the first-level cache (48 KB) while the tokens go by from the second-level one. Both from
// there would be 64 bytes a cycle, more than it gives. Sums wait in memory meanwhile. Granite
// Rapids, one core, 2880 x 2880 MXFP4 in cache, GMAC/s with 8, 10, 15 steps: 64 tokens 675, 620,
// 490; 256 tokens 766, 660, 650; products alone would be 1,600.
#pragma once

#include <cstddef>

#include "backend/op_args.h"
#include "cpu/kernel_table.h"
#include "cpu/simd/amx.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Tokens that share expanded weights: 256 of 2880 inputs are 1.5 MB, which stay in a second-level
// cache of 2 MB.
constexpr std::int64_t kAmxTokens = 256;
constexpr std::int64_t kPanelSteps = 8;
GPTOSS_INLINE std::int64_t tile_steps(std::int64_t cols) {
  return (cols + kTileDepth - 1) / kTileDepth;
}

struct AmxScratch {
  std::byte* tokens;  // TokenTiles
  float* sums;        // [token tile][row tile][16][16]
  std::byte* panel;   // [kPanelSteps][row tile] tiles of weights, or as a product likes
  std::byte* blocks;  // few_token_bytes

  GPTOSS_INLINE float* tile_sums(std::int64_t token_tile) const {
    return sums + token_tile * 2 * kTileBytes / 4;
  }
};

constexpr std::int64_t kAmxSumBytes = kAmxTokens / kTileTokens * 2 * kTileBytes;
constexpr std::int64_t kAmxPanelBytes = 20 * kTileBytes;
static_assert(kPanelSteps * 2 * kTileBytes <= kAmxPanelBytes);

// 72 bytes a block of 32 and what rounds them up, for each of two tokens.
GPTOSS_INLINE std::int64_t few_token_bytes(std::int64_t cols) {
  return 2 * ((cols / kMxBlock + 3) * 72 + 64) / 64 * 64 + 64;
}

std::size_t amx_scratch_bytes(std::int64_t cols) {
  const std::int64_t tokens = kAmxTokens / kTileTokens * tile_steps(cols) * kTileBytes;
  return static_cast<std::size_t>(64 + kAmxSumBytes + kAmxPanelBytes + tokens +
                                  few_token_bytes(cols));
}

inline AmxScratch cut_amx_scratch(std::byte* scratch, std::int64_t cols) {
  std::byte* p = scratch + (64 - reinterpret_cast<std::uintptr_t>(scratch) % 64) % 64;
  std::byte* const blocks = p + kAmxSumBytes + kAmxPanelBytes;
  return {blocks + few_token_bytes(cols), reinterpret_cast<float*>(p), p + kAmxSumBytes, blocks};
}

// Some tokens as tiles B: [token tile][step of k][16 pairs][width][2] bf16. Fewer than 16 tokens
// are no wider than they are, since all weights meet them: less to read.
struct TokenTiles {
  const std::byte* data;
  std::int64_t count;  // tokens
  std::int64_t steps;

  GPTOSS_INLINE std::int64_t width() const { return count < kTileTokens ? count : kTileTokens; }
  GPTOSS_INLINE std::int64_t tiles() const { return (count + kTileTokens - 1) / kTileTokens; }
  GPTOSS_INLINE std::int64_t tile_bytes() const { return 4 * kTileRows * width(); }
  GPTOSS_INLINE const std::byte* tile(std::int64_t token_tile, std::int64_t step) const {
    return data + (token_tile * steps + step) * tile_bytes();
  }
};

// words(token, step): 32 bf16 of one token.
template <typename Words, typename Pair>
GPTOSS_INLINE TokenTiles pack_tokens(std::int64_t count, std::int64_t steps, const Words& words,
                                     const Pair& pair, std::byte* out) {
  const TokenTiles tiles{out, count, steps};
  for (std::int64_t tile = 0; tile < tiles.tiles(); ++tile) {
    for (std::int64_t step = 0; step < steps; ++step) {
      __m512i rows[16];
      GPTOSS_UNROLL
      for (int t = 0; t < 16; ++t) {
        const std::int64_t token = tile * kTileTokens + t;
        rows[t] = token < count ? words(token, step) : _mm512_setzero_si512();
      }
      store_token_tile(rows, tiles.width(), pair, out);
      out += tiles.tile_bytes();
    }
  }
  return tiles;
}

GPTOSS_INLINE TokenTiles pack_float_tokens(MatrixView<const float> x, Range tokens,
                                           std::byte* out) {
  const auto words = [&](std::int64_t token, std::int64_t step) __attribute__((always_inline)) {
    const std::int64_t col = step * kTileDepth;
    return to_bf16_words(x.row(tokens.begin + token) + col, x.cols - col);
  };
  const auto in_order = [](int row) __attribute__((always_inline)) { return row; };
  return pack_tokens(tokens.size(), tile_steps(x.cols), words, in_order, out);
}

// Exponents of what some tokens hold: of the smallest and the largest unit of a block.
struct UnitRange {
  int least = 1000;
  int largest = -1000;
};

template <typename Row>
GPTOSS_INLINE UnitRange unit_range(const Bf16Activations& x, Range tokens, const Row& row) {
  const std::int64_t num_blocks = x.cols / kMxBlock;
  UnitRange range;
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* scales = x.scales + row(t) * num_blocks;
    for (std::int64_t b = 0; b < num_blocks; ++b) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(scales[b]);
      const int exponent = static_cast<int>(bits >> 23) - 127;
      if (bits == 0 || exponent > 127) continue;  // zeros, NaN
      range.least = exponent < range.least ? exponent : range.least;
      range.largest = exponent > range.largest ? exponent : range.largest;
    }
  }
  return range;
}

// Where a tile of weights lies.
struct TileView {
  const std::byte* data;
  std::int64_t stride_bytes;
};

// Steps of weights to the panel, apart from the products: both want the same port of the core, and
// mixed they take longer than one after the other.
template <int kRowTiles, typename Weights>
GPTOSS_INLINE void fill_panel(const Weights& weights, Range steps, std::byte* to) {
  for (std::int64_t step = steps.begin; step < steps.end; ++step, to += 2 * kTileBytes) {
    GPTOSS_UNROLL
    for (int r = 0; r < kRowTiles; ++r) weights.fill(step, r, to + r * kTileBytes);
  }
}

// One of so many parts of the next panel's bytes, fetched while this panel multiplies: all at once
// they would fill the core's queue of misses, and the panel's own loads would wait.
struct Share {
  std::int64_t index;
  std::int64_t count;
};

// Fetches lines [0, rows * lines) by share: line i is the (i % lines)-th of row i / lines.
GPTOSS_INLINE void fetch_lines(const void* first, std::int64_t row_bytes, std::int64_t rows,
                               std::int64_t lines, Share share) {
  const std::int64_t each = (rows * lines + share.count - 1) / share.count;
  const std::int64_t begin = each * share.index;
  const std::int64_t end = begin + each < rows * lines ? begin + each : rows * lines;
  for (std::int64_t i = begin; i < end; ++i) {
    const auto* row = static_cast<const std::uint8_t*>(first) + i / lines * row_bytes;
    __builtin_prefetch(row + i % lines * 64, 0, 2);
  }
}

// Where the sums of some tiles are between two calls.
enum class Sums { kInTiles, kInMemory };

// Steps of the panel times kTokenTiles tiles of tokens, from `token_tile` on. The sums begin at
// zero with step 0 and go to memory with the last step at the latest.
template <int kRowTiles, int kTokenTiles, Sums kSums, typename Weights>
GPTOSS_INLINE void multiply_tiles(const Weights& weights, const TokenTiles& x, Range steps,
                                  std::int64_t token_tile, const AmxScratch& scratch) {
  constexpr std::int64_t kTileFloats = kTileBytes / 4;
  float* const sums = scratch.tile_sums(token_tile);
  const auto each_sum = [&](const auto& body) __attribute__((always_inline)) {
    body.template operator()<kC00>(sums);
    if constexpr (kRowTiles == 2) body.template operator()<kC10>(sums + kTileFloats);
    if constexpr (kTokenTiles == 2) {
      body.template operator()<kC01>(sums + 2 * kTileFloats);
      if constexpr (kRowTiles == 2) body.template operator()<kC11>(sums + 3 * kTileFloats);
    }
  };
  if (steps.begin == 0) {
    each_sum([]<int kTile>(float*) __attribute__((always_inline)) { zero_tile<kTile>(); });
  } else if constexpr (kSums == Sums::kInMemory) {
    each_sum([]<int kTile>(float* at)
                 __attribute__((always_inline)) { load_tile<kTile>(at, kTileRowBytes); });
  }
  const std::int64_t token_stride = 4 * x.width();
  const std::int64_t tile_bytes = x.tile_bytes();
  const std::byte* b0 = x.tile(token_tile, steps.begin);
  const std::byte* b1 = b0 + x.steps * tile_bytes;
  const std::byte* filled = scratch.panel;
  Share share{token_tile / 2 * steps.size(), (x.tiles() + 1) / 2 * steps.size()};
  for (std::int64_t step = steps.begin; step < steps.end; ++step, ++share.index) {
    weights.fetch_next(steps, share);
    const TileView a0 = weights.tile(step, 0, filled);
    load_tile<kB0>(b0, token_stride);
    load_tile<kA0>(a0.data, a0.stride_bytes);
    add_tile_product<kC00, kA0, kB0>();
    if constexpr (kRowTiles == 2) {
      const TileView a1 = weights.tile(step, 1, filled + kTileBytes);
      load_tile<kA1>(a1.data, a1.stride_bytes);
      add_tile_product<kC10, kA1, kB0>();
    }
    if constexpr (kTokenTiles == 2) {
      load_tile<kB1>(b1, token_stride);
      add_tile_product<kC01, kA0, kB1>();
      if constexpr (kRowTiles == 2) add_tile_product<kC11, kA1, kB1>();
    }
    b0 += tile_bytes;
    b1 += tile_bytes;
    filled += 2 * kTileBytes;
  }
  if (kSums == Sums::kInMemory || steps.end == x.steps) {
    each_sum([]<int kTile>(float* at)
                 __attribute__((always_inline)) { store_tile<kTile>(at, kTileRowBytes); });
  }
}

// kRowTiles tiles of weights times all tokens; leaves the sums in the scratch.
template <int kRowTiles, typename Weights>
void multiply_panel(const Weights& weights_in_memory, const TokenTiles& x_in_memory,
                    const AmxScratch& scratch_in_memory) {
  // Copies, which stay in registers: the tiles' assembly clobbers memory.
  const Weights weights = weights_in_memory;
  const TokenTiles x = x_in_memory;
  const AmxScratch scratch = scratch_in_memory;
  const std::int64_t tiles = x.tiles();
  for (std::int64_t begin = 0; begin < x.steps; begin += kPanelSteps) {
    const std::int64_t end = begin + kPanelSteps < x.steps ? begin + kPanelSteps : x.steps;
    const Range steps{begin, end};
    fill_panel<kRowTiles>(weights, steps, scratch.panel);
    if (tiles == 1) {
      multiply_tiles<kRowTiles, 1, Sums::kInTiles>(weights, x, steps, 0, scratch);
      continue;
    }
    if (tiles == 2) {
      multiply_tiles<kRowTiles, 2, Sums::kInTiles>(weights, x, steps, 0, scratch);
      continue;
    }
    std::int64_t tile = 0;
    for (; tile + 1 < tiles; tile += 2) {
      multiply_tiles<kRowTiles, 2, Sums::kInMemory>(weights, x, steps, tile, scratch);
    }
    if (tile < tiles) {
      multiply_tiles<kRowTiles, 1, Sums::kInMemory>(weights, x, steps, tile, scratch);
    }
  }
}

// Sums of a panel to rows of the output: out_row(token), from column `row` on. `rows`: how many are
// there, at most 16 * kRowTiles. bias: of these rows, or null.
template <int kRowTiles, typename OutRow>
GPTOSS_INLINE void finish_panel(const AmxScratch& scratch, std::int64_t count, std::int64_t rows,
                                const bf16* bias, Epilogue epilogue, const OutRow& out_row) {
  for (std::int64_t token = 0; token < count; token += kTileTokens) {
    const float* sums = scratch.tile_sums(token / kTileTokens);
    const std::int64_t left = count - token < kTileTokens ? count - token : kTileTokens;
    for (int r = 0; r < kRowTiles; ++r) {
      const std::int64_t there = rows - r * kTileRows;
      if (there <= 0) break;
      const __mmask16 mask = first_of_16(there);
      __m512 by_token[16];
      load_outputs(sums + r * (kTileBytes / 4), by_token);
      __m512 b = _mm512_setzero_ps();
      if (bias != nullptr) {
        const __m256i bits = _mm256_maskz_loadu_epi16(mask, bias + r * kTileRows);
        b = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      }
      alignas(64) float rows_of_token[16][16];
      GPTOSS_UNROLL
      for (int t = 0; t < 16; ++t) _mm512_store_ps(rows_of_token[t], by_token[t]);
      for (std::int64_t t = 0; t < left; ++t) {
        float* out = out_row(token + t) + r * kTileRows;
        __m512 v = _mm512_load_ps(rows_of_token[t]);
        if (bias != nullptr) v = _mm512_add_ps(v, b);
        if (epilogue == Epilogue::kAdd) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), v);
        _mm512_mask_storeu_ps(out, mask, v);
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
