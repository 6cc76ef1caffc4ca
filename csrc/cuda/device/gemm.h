// What the tensor-core products out^T = W * x^T of both architectures share: their arguments, and
// how the work is cut. A tile is some row tiles of W (of one expert's matrix) by some tokens;
// blocks take tiles in order, row tiles fastest, so that the tiles at work at one time share their
// tokens and an expert's weights stay in L2 until its last token.
#pragma once

#include <cstdint>

#include "cuda/device/gemm_epilogue.h"
#include "cuda/layout.h"

namespace gptoss::cuda {

enum class WeightFormat { kBf16, kMxfp4 };

// Tiles of tokens: a list in device memory, or (null) equal pieces of num_tokens.
struct TokenTiles {
  const TokenTile* list;
  const std::int32_t* num_tiles;
  std::int32_t num_tokens;
  std::int32_t tile_tokens;

  __device__ std::int32_t count() const {
    return list != nullptr ? *num_tiles : (num_tokens + tile_tokens - 1) / tile_tokens;
  }
  __device__ TokenTile at(std::int32_t index) const {
    if (list != nullptr) return list[index];
    const std::int32_t begin = index * tile_tokens;
    return {0, begin, min(tile_tokens, num_tokens - begin), 0};
  }
};

struct GemmArgs {
  TokenTiles tiles;
  std::int32_t num_stages;  // 64 columns each, or twice as many (gemm_few_sm90.h)
  std::int32_t row_tiles;   // of one expert's matrix
  std::int32_t row_blocks;  // tiles of the grid along the rows
  std::int32_t box_tokens;  // rows of the first token map's box
  // No kernel that may still be running writes the list of tiles (or there is none): the weights of
  // the first stages can be asked for.
  bool early = false;
  // Null: every gridDim.x-th tile is a block's. Otherwise zero at first, counts the tiles taken
  // past the blocks' first ones: who is done takes the next.
  std::int32_t* num_taken = nullptr;
  TileOutputArgs output;
};

constexpr int kStageCols = 64;
constexpr int kStageSteps = kStageCols / kTileK;
constexpr int kTokenRowBytes = kStageCols * 2;  // of one token, a stage

}  // namespace gptoss::cuda
