// The Hopper product out^T = W * x^T that linear_bf16_sm90 and linear_mxfp4_sm90 share.
//
// A persistent block takes tiles of 16 kRowTiles weight rows by up to kMaxTokens tokens. One thread
// of a producer warpgroup brings stages of 64 columns to shared memory by TMA (weights as they lie,
// tokens with the 128-byte swizzle); consumer warpgroups read weight fragments into registers,
// decode MXFP4 on the way, and issue wgmma with them as A, for as many tokens as the tile has: a
// stage's products run while the fragments of the next are made. Every output is
// summed along K in one order, whatever the tile's shape.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/device/gemm.h"
#include "cuda/device/gemm_fragments_sm90.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/tma.h"

namespace gptoss::cuda {

// Beside each stage: two barriers, and where it is the first of a tile, that tile.
constexpr int kBesideStageBytes = 32;

// kConsumers warpgroups of 64 rows each; token tiles up to kMaxTokens, in
// multiples of kGranule.
template <WeightFormat kFormatOf, int kConsumersOf, int kMaxTokensOf, int kGranuleOf>
struct GemmShape {
  static constexpr WeightFormat kFormat = kFormatOf;
  static constexpr int kConsumers = kConsumersOf;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kMaxTokens = kMaxTokensOf;
  static constexpr int kGranule = kGranuleOf;
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

// A block's tiles: every gridDim.x-th or, with args.num_taken, where tiles differ in size, the next
// one when it is done. What is in memory about a tile is asked for a tile ahead.
class TileWalk {
 public:
  __device__ explicit TileWalk(const GemmArgs& args)
      : args_(args),
        index_(static_cast<std::int32_t>(blockIdx.x)),
        end_(args.tiles.count() * args.row_blocks) {
    ask();
  }

  // False at the end.
  __device__ __forceinline__ bool next(GridTile& tile) {
    if (index_ >= end_) return false;
    tile = {tokens_, index_ % args_.row_blocks};
    index_ = static_cast<std::int32_t>(gridDim.x) + (args_.num_taken == nullptr ? index_ : taken_);
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
  TileWalk walk;
  __device__ explicit TileSource(const GemmArgs& args) : walk(args) {}
  __device__ __forceinline__ bool next(const RingPlace<Shape>& /*place*/, GridTile& tile) {
    return walk.next(tile);
  }
};

// One thread. With args.early (gemm.h) the first stages' weights are on their way when the kernels
// before this one end.
template <class Shape>
__device__ __forceinline__ void produce(RingPlace<Shape> place, const GemmArgs& args,
                                        const CUtensorMap* weight_map,
                                        const CUtensorMap* token_maps) {
  if (!args.early) ptx::wait_for_dependencies();
  bool waited = !args.early;
  TileWalk walk(args);
  GridTile tile;
  while (walk.next(tile)) {
    const TokenTile tokens = tile.tokens;
    const std::int32_t row_tile =
        tokens.expert * args.row_tiles + tile.row_block * Shape::kRowTiles;
    const std::int32_t width = (tokens.count + args.box_tokens - 1) / args.box_tokens;
    const std::uint32_t num_bytes =
        Shape::kRowTiles * Shape::kWeightTileBytes + width * args.box_tokens * kTokenRowBytes;
    const auto ask_weights = [&](std::int32_t k) {
      place.wait_empty();
      if (Shape::kTakesTiles && k == 0) place.put_tile(tile);
      ptx::mbarrier_arrive_expect_bytes(place.full(), num_bytes);
      if constexpr (Shape::kFormat == WeightFormat::kBf16) {
        ptx::tma_load(place.weights(), weight_map, k * (Shape::kWeightTileBytes / 8), row_tile,
                      place.full());
      } else {
        ptx::tma_load(place.weights(), weight_map, 0, k, row_tile, place.full());
      }
    };
    const auto ask_tokens = [&](std::int32_t k, const RingPlace<Shape>& at) {
      ptx::tma_load(at.tokens(), token_maps + width - 1, k * kStageCols, tokens.begin, at.full());
    };
    std::int32_t k = 0;
    if (!waited) {
      RingPlace<Shape> first = place;
      for (; k < min(Shape::kStages, args.num_stages); ++k) {
        ask_weights(k);
        place.advance();
      }
      ptx::wait_for_dependencies();
      waited = true;
      for (std::int32_t i = 0; i < k; ++i) {
        ask_tokens(i, first);
        first.advance();
      }
    }
    for (; k < args.num_stages; ++k) {
      ask_weights(k);
      ask_tokens(k, place);
      place.advance();
    }
  }
  if constexpr (Shape::kTakesTiles) {
    place.wait_empty();
    place.put_tile({});
    ptx::mbarrier_arrive(place.full());
  }
}

template <class Shape>
using Accumulators = float[Shape::kMaxTokens / 2];

// A stage's products (issue) for the fewest granules, from kFrom to kTo, that hold `width` tokens.
// Commits happen inside: after the branches meet they would make one more group.
template <class Shape, int kFrom, int kTo>
__device__ __forceinline__ void issue_fitting(std::uint32_t descriptor, std::int32_t width,
                                              const Fragments& a, Accumulators<Shape>& d) {
  if constexpr (kFrom == kTo) {
    issue<kTo * Shape::kGranule>(descriptor, a, d);
  } else {
    constexpr int kMiddle = (kFrom + kTo) / 2;
    if (width > kMiddle * Shape::kGranule) {
      issue_fitting<Shape, kMiddle + 1, kTo>(descriptor, width, a, d);
    } else {
      issue_fitting<Shape, kFrom, kMiddle>(descriptor, width, a, d);
    }
  }
}

// The products of one tile for its first `width` tokens, looked at each stage: of one loop for each
// width the compiler makes poor code. Fragments alternate between two sets of registers: one is
// read by running products while the other is made.
template <class Shape>
__device__ __forceinline__ void multiply(RingPlace<Shape>& place, std::int32_t num_stages,
                                         std::int32_t width, int warp, Accumulators<Shape>& d) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::uint32_t my_weights = warp * Shape::kWeightTileBytes;
  StageWeights<Shape::kFormat> weights;
  Fragments a[2] = {};
  std::uint32_t barrier_before = 0;  // of the stage before this one

  const auto release = [&](std::uint32_t barrier) {
    if (barrier != 0 && lane == 0) ptx::mbarrier_arrive(place.empty_of(barrier));
  };
  const auto wait_and_fetch = [&] {
    place.wait_full();
    weights.fetch(place.weights() + my_weights, lane);
  };
  const auto stage = [&]<int kSet>(bool last) {
    weights.decode(a[kSet]);
    issue_fitting<Shape, 1, Shape::kMaxTokens / Shape::kGranule>(
        ptx::wgmma_descriptor_address(place.tokens()), width, a[kSet], d);
    ptx::wgmma_wait<1>();  // the stage before: it and its registers are free
    keep(a[1 - kSet]);
    release(barrier_before);
    barrier_before = place.barrier;
    place.advance();
    if (last) return;
    wait_and_fetch();
  };

  wait_and_fetch();
  for (std::int32_t k = 0; k < num_stages; k += 2) {
    stage.template operator()<0>(k + 1 == num_stages);
    if (k + 1 < num_stages) stage.template operator()<1>(k + 2 == num_stages);
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(d);
  keep(a[0]);
  keep(a[1]);
  release(barrier_before);
}

// Asks for what kAdd will read of a tile's token, `row` the tile's first, to be brought to L2.
__device__ __forceinline__ void prefetch_rows(const TileOutputArgs& args, std::int64_t token,
                                              std::int32_t row, std::int32_t num_rows) {
  const float* place = static_cast<const float*>(args.out) + token * args.out_stride + row;
  const std::int32_t rows = min(num_rows, args.rows - row) & ~3;
  if (rows > 0 && reinterpret_cast<std::uintptr_t>(place) % 16 == 0) {
    ptx::bulk_prefetch_l2(place, static_cast<std::uint32_t>(rows) * sizeof(float));
  }
}

template <class Shape, TileOutput kOutput>
__device__ __forceinline__ void consume(RingPlace<Shape> place, const GemmArgs& args, int warp) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  TileSource<Shape> source(args);
  GridTile tile;
  while (source.next(place, tile)) {
    const auto [tokens, row_block] = tile;
    if constexpr (kOutput == TileOutput::kAdd) {
      for (std::int32_t i = threadIdx.x; i < tokens.count;
           i += Shape::kConsumers * kWarpgroupThreads) {
        prefetch_rows(args.output, tokens.begin + i, row_block * Shape::kRowTiles * kTileRows,
                      Shape::kRowTiles * kTileRows);
      }
    }
    const std::int32_t row_tile = row_block * Shape::kRowTiles + warp;
    const BiasPair bias = load_bias(args.output, tokens.expert, row_tile);
    Accumulators<Shape> d = {};
    multiply(place, args.num_stages, tokens.count, warp, d);
    write_tile<kOutput, Shape::kMaxTokens / 8>(args.output, bias, row_tile, tokens.begin,
                                               tokens.count, d);
  }
}

// A kernel's parameter, __grid_constant__: the copy engine reads the maps where they lie.
template <class Shape>
struct MappedGemmArgs {
  CUtensorMap weight_map;
  CUtensorMap token_maps[Shape::kTokenMaps];  // boxes of once, twice ... gemm.box_tokens
  GemmArgs gemm;
};

template <class Shape, TileOutput kOutput>
__device__ __forceinline__ void gemm_block(const MappedGemmArgs<Shape>& args) {
  extern __shared__ std::uint8_t raw_smem[];
  const RingPlace<Shape> place(raw_smem);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      const std::uint32_t barrier = place.first_barrier + kBesideStageBytes * stage;
      ptx::mbarrier_init(barrier, 1);
      ptx::mbarrier_init(place.empty_of(barrier), Shape::kRowTiles);
    }
    ptx::fence_mbarrier_init();
    ptx::tma_prefetch_map(&args.weight_map);
    for (const CUtensorMap& map : args.token_maps) ptx::tma_prefetch_map(&map);
  }
  __syncthreads();  // the barriers exist

  // Known to be the same in all lanes, the role's branch leaves warps whole for the compiler, which
  // keeps addresses and descriptors in uniform registers then.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp >= 4 * Shape::kConsumers) {
    if constexpr (Shape::kMoveRegisters) ptx::setmaxnreg_decrease<Shape::kProducerRegisters>();
    if (threadIdx.x == Shape::kConsumers * kWarpgroupThreads) {
      produce(place, args.gemm, &args.weight_map, args.token_maps);
    }
  } else {
    if constexpr (Shape::kMoveRegisters) ptx::setmaxnreg_increase<Shape::kConsumerRegisters>();
    consume<Shape, kOutput>(place, args.gemm, warp);
  }
}

}  // namespace gptoss::cuda
