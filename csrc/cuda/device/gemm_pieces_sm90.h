// What the two Hopper products for few tokens an expert share (gemm_few_sm90.h,
// gemm_stream_sm90.h): the ring of stages in shared memory, each with its barriers at its end, and
// how the work is cut. The rows of all tiles of tokens, in units of a few row tiles, one after
// another, are cut into one stretch a block, so that every multiprocessor has the same share of the
// work.
#pragma once

#include <cstdint>

#include "cuda/device/gemm_sm90.h"

namespace gptoss::cuda {

// Where in the ring of stages a role stands. Shape has kFull and kEmpty, the places of a stage's
// barriers, kStageBytes, a multiple of 1,024, and kStages.
template <class Shape>
struct PieceRing {
  std::uint32_t first;
  std::uint32_t stage;
  std::uint32_t parity = 0;

  __device__ explicit PieceRing(const void* smem)
      : first((ptx::shared_address(smem) + 1023) & ~1023u), stage(first) {}

  // One thread, once. Every one of kWarps consumer warps empties a stage.
  __device__ void init() const {
    for (int i = 0; i < Shape::kStages; ++i) {
      ptx::mbarrier_init(first + i * Shape::kStageBytes + Shape::kFull, 1);
      ptx::mbarrier_init(first + i * Shape::kStageBytes + Shape::kEmpty, Shape::kWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __device__ __forceinline__ std::uint32_t full() const { return stage + Shape::kFull; }
  __device__ __forceinline__ std::uint32_t empty() const { return stage + Shape::kEmpty; }
  __device__ __forceinline__ void wait_full() const { ptx::mbarrier_wait(full(), parity); }
  __device__ __forceinline__ void wait_empty() const { ptx::mbarrier_wait(empty(), parity ^ 1); }
  __device__ __forceinline__ void advance() {
    stage += Shape::kStageBytes;
    if (stage == first + Shape::kStages * Shape::kStageBytes) {
      stage = first;
      parity ^= 1;
    }
  }
  // A consumer warp that has nothing to multiply passes stages on.
  __device__ __forceinline__ void pass(std::int32_t num_stages) {
    for (std::int32_t k = 0; k < num_stages; ++k) {
      wait_full();
      if (threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(empty());
      advance();
    }
  }
};

// What a block multiplies at one time: `count` units of a tile of tokens from `first` on.
struct Piece {
  TokenTile tokens{};
  std::int32_t tile = -1;
  std::int32_t first = 0;
  std::int32_t count = 0;
};

// A block's stretch of the list's work (tile_work), which begins and ends between units: what it
// has of one tile of tokens in pieces of almost the same size, at most kUnits each; args.row_blocks
// units a tile. Whole warps.
template <int kUnits>
class PieceWalk {
 public:
  __device__ explicit PieceWalk(const GemmArgs& args)
      : args_(args), num_tiles_(args.tiles.count()) {
    const std::int64_t work =
        std::int64_t{args.tiles.list[num_tiles_].work_before} * args.row_blocks;
    unit_ = first_unit(work * blockIdx.x / gridDim.x);
    end_ = first_unit(work * (blockIdx.x + 1) / gridDim.x);
  }

  // False at the end.
  __device__ __forceinline__ bool next(Piece& piece) {
    if (unit_ == end_) return false;
    const std::int32_t tile = unit_ / args_.row_blocks;
    if (tile != piece.tile) piece.tokens = args_.tiles.at(tile);
    piece.tile = tile;
    piece.first = unit_ - tile * args_.row_blocks;
    const std::int32_t left = min(end_ - unit_, args_.row_blocks - piece.first);
    const std::int32_t pieces = (left + kUnits - 1) / kUnits;
    piece.count = (left + pieces - 1) / pieces;
    unit_ += piece.count;
    return true;
  }

 private:
  // The unit that so much work, of units before it, is in.
  __device__ std::int32_t first_unit(std::int64_t work) const {
    const auto lane = static_cast<std::int32_t>(threadIdx.x) % kWarp;
    const auto of_rows = static_cast<std::int32_t>(work / args_.row_blocks);
    std::int32_t begun = 0;  // tiles
#pragma unroll 4
    for (std::int32_t base = 0; base < num_tiles_; base += kWarp) {
      const std::int32_t tile = base + lane;
      const bool has_begun = tile < num_tiles_ && args_.tiles.list[tile].work_before <= of_rows;
      begun += __popc(__ballot_sync(0xffffffffu, has_begun));
    }
    if (begun == 0) return 0;  // no tiles
    const TokenTile* tile = args_.tiles.list + begun - 1;
    const std::int32_t before = tile[0].work_before;
    const std::int64_t into = work - std::int64_t{before} * args_.row_blocks;
    const auto units = static_cast<std::int32_t>(into / (tile[1].work_before - before));
    return (begun - 1) * args_.row_blocks + units;
  }

  const GemmArgs& args_;
  std::int32_t num_tiles_;
  std::int32_t unit_;
  std::int32_t end_;
};

// One lane. The stages of one piece: ask_weights(k, ring) waits until the stage is empty, says
// how many bytes it will have and asks for weights, ask_tokens(k, ring) for the rest. While
// `waited` is false the kernels before this one may be running (args.early): they do not write
// weights, so the first stages' are on their way when those end.
template <class Shape, class AskWeights, class AskTokens>
__device__ __forceinline__ void produce_piece(PieceRing<Shape>& ring, std::int32_t num_stages,
                                              bool& waited, AskWeights&& ask_weights,
                                              AskTokens&& ask_tokens) {
  std::int32_t k = 0;
  if (!waited) {
    PieceRing<Shape> ahead = ring;
    for (; k < min(Shape::kStages, num_stages); ++k) {
      ask_weights(k, ring);
      ring.advance();
    }
    ptx::wait_for_dependencies();
    waited = true;
    for (std::int32_t i = 0; i < k; ++i) {
      ask_tokens(i, ahead);
      ahead.advance();
    }
  }
  for (; k < num_stages; ++k) {
    ask_weights(k, ring);
    ask_tokens(k, ring);
    ring.advance();
  }
}

}  // namespace gptoss::cuda
