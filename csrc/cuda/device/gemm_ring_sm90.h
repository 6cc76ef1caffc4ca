// How a Hopper product (gemm_sm90.h) is cut, and the ring of stages through which its producer
// hands tiles to its consumers.
#pragma once

#include <cstdint>

#include "cuda/device/gemm.h"
#include "cuda/device/gemm_fragments_sm90.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/shared_load.h"

namespace gptoss::cuda {

// Beside each stage: two barriers, and where it is the first of a tile, that tile.
constexpr int kBesideStageBytes = 32;

// kConsumers warpgroups of 64 rows each; token tiles up to kMaxTokens, in multiples of kGranule.
// The kSplits blocks of a cluster share a tile: each has a part of the columns.
template <WeightFormat kFormatOf, int kConsumersOf, int kMaxTokensOf, int kGranuleOf,
          int kSplitsOf = 1>
struct GemmShape {
  static constexpr WeightFormat kFormat = kFormatOf;
  static constexpr int kConsumers = kConsumersOf;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kMaxTokens = kMaxTokensOf;
  static constexpr int kGranule = kGranuleOf;
  static constexpr int kSplits = kSplitsOf;
  static constexpr int kRowTiles = 4 * kConsumers;  // one a consumer warp
  // Tiles of a list differ in tokens: blocks take the next one when they are done, and for each
  // width there is a map, so that one copy brings a stage's.
  static constexpr bool kTakesTiles = kFormat == WeightFormat::kMxfp4;
  static constexpr int kTokenMaps = kFormat == WeightFormat::kBf16 ? 1 : kMaxTokens / kGranule;
  static constexpr int kWeightTileBytes =
      kFormat == WeightFormat::kBf16 ? kStageSteps * kDenseTileBytes : kMxRecordBytes;
  static constexpr int kTokenBytes = kMaxTokens * kTokenRowBytes;
  static constexpr int kStageBytes =
      kTokenBytes + (kRowTiles * kWeightTileBytes + 1023) / 1024 * 1024;
  // All that a block may have, less the alignment of the first stage and what is beside stages.
  static constexpr int kMostStages = 24;
  static constexpr int kRoom = 227 * 1024 - 1024 - kBesideStageBytes * kMostStages;
  static constexpr int kStages =
      kRoom / kStageBytes < kMostStages ? kRoom / kStageBytes : kMostStages;
  static constexpr int kSmemBytes = 1024 + kStages * (kStageBytes + kBesideStageBytes);
  // Accumulators of 128 registers want more than an equal share; the producer needs few.
  static constexpr bool kMoveRegisters = kThreads * kMaxTokens >= 384 * 256;
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
  static_assert(kMaxTokens <= 256 && kMaxTokens % kGranule == 0 && kGranule % 16 == 0);
  static_assert(kStages >= 4, "some are read from while others are filled");
};

// A tile of the grid; without tokens: there are no more.
struct GridTile {
  TokenTile tokens;
  std::int32_t row_block;
};

// The tiles of kSplits blocks: every gridDim.x-th or, with args.num_taken, where tiles differ in
// size, the next one when it is done. What is in memory about a tile is asked for a tile ahead.
template <int kSplits>
class TileWalk {
 public:
  __device__ explicit TileWalk(const GemmArgs& args)
      : args_(args),
        index_(static_cast<std::int32_t>(blockIdx.x) / kSplits),
        end_(args.tiles.count() * args.row_blocks) {
    ask();
  }

  // False at the end.
  __device__ __forceinline__ bool next(GridTile& tile) {
    if (index_ >= end_) return false;
    tile = {tokens_, index_ % args_.row_blocks};
    index_ = static_cast<std::int32_t>(gridDim.x) / kSplits +
             (args_.num_taken == nullptr ? index_ : taken_);
    ask();
    return true;
  }

 private:
  __device__ __forceinline__ void ask() {
    if (index_ >= end_) return;
    tokens_ = args_.tiles.at(index_ / args_.row_blocks);
    if (args_.num_taken != nullptr) taken_ = atomicAdd(args_.num_taken, 1);
  }

  const GemmArgs& args_;
  std::int32_t index_;
  std::int32_t end_;
  TokenTile tokens_{};
  std::int32_t taken_ = 0;
};

// The stages of a tile that this block has.
template <int kSplits>
struct StageRange {
  std::int32_t begin;
  std::int32_t end;

  __device__ explicit StageRange(const GemmArgs& args) {
    const auto rank = static_cast<std::int32_t>(blockIdx.x) % kSplits;
    begin = args.num_stages * rank / kSplits;
    end = args.num_stages * (rank + 1) / kSplits;
  }
};

// Where in the ring of stages a role stands: the stage's first byte and its barriers.
template <class Shape>
struct RingPlace {
  std::uint32_t first_stage;
  std::uint32_t first_barrier;
  std::uint32_t stage;
  std::uint32_t barrier;
  std::uint32_t parity = 0;

  __device__ explicit RingPlace(const void* smem)
      : first_stage((ptx::shared_address(smem) + 1023) & ~1023u),
        first_barrier(first_stage + Shape::kStages * Shape::kStageBytes),
        stage(first_stage),
        barrier(first_barrier) {}

  __device__ __forceinline__ std::uint32_t tokens() const { return stage; }
  __device__ __forceinline__ std::uint32_t weights() const { return stage + Shape::kTokenBytes; }
  __device__ __forceinline__ std::uint32_t full() const { return barrier; }
  __device__ __forceinline__ std::uint32_t empty() const { return empty_of(barrier); }
  __device__ __forceinline__ static std::uint32_t empty_of(std::uint32_t barrier) {
    return barrier + 8;
  }
  __device__ __forceinline__ void wait_full() const { ptx::mbarrier_wait(full(), parity); }
  __device__ __forceinline__ void wait_empty() const { ptx::mbarrier_wait(empty(), parity ^ 1); }
  // The producer's, before it says that the stage will be full; the consumers', once it is.
  __device__ __forceinline__ void put_tile(const GridTile& tile) const {
    ptx::store_shared_16(barrier + 16, make_uint4(tile.tokens.expert, tile.tokens.begin,
                                                  tile.tokens.count, tile.row_block));
  }
  __device__ __forceinline__ GridTile wait_tile() const {
    wait_full();
    const uint4 v = ptx::load_shared_16(barrier + 16);
    const auto number = [](std::uint32_t bits) { return static_cast<std::int32_t>(bits); };
    return {{number(v.x), number(v.y), number(v.z), 0}, number(v.w)};
  }
  __device__ __forceinline__ void advance() {
    stage += Shape::kStageBytes;
    barrier += kBesideStageBytes;
    if (barrier == first_barrier + kBesideStageBytes * Shape::kStages) {
      stage = first_stage;
      barrier = first_barrier;
      parity ^= 1;
    }
  }
};

// Where consumers learn of their tiles: from the producer, or by the same walk.
template <class Shape, bool kTakes = Shape::kTakesTiles>
struct TileSource {
  __device__ explicit TileSource(const GemmArgs& /*args*/) {}
  __device__ __forceinline__ bool next(const RingPlace<Shape>& place, GridTile& tile) const {
    tile = place.wait_tile();
    return tile.tokens.count > 0;
  }
};
template <class Shape>
struct TileSource<Shape, false> {
  TileWalk<Shape::kSplits> walk;
  __device__ explicit TileSource(const GemmArgs& args) : walk(args) {}
  __device__ __forceinline__ bool next(const RingPlace<Shape>& /*place*/, GridTile& tile) {
    return walk.next(tile);
  }
};

}  // namespace gptoss::cuda
