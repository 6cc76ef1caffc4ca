// The Hopper product out^T = W * x^T that linear_bf16_sm90 and linear_mxfp4_sm90 share.
//
// A persistent block takes tiles of 16 kRowTiles weight rows by up to kMaxTokens tokens. One thread
// of a producer warpgroup brings stages of 64 columns to shared memory by TMA (weights as they lie,
// tokens with the 128-byte swizzle); consumer warpgroups read weight fragments into registers,
// decode MXFP4 on the way, and issue wgmma with them as A, for as many tokens as the tile has: a
// stage's products run while the fragments of the next are made. Every output is
// summed along K in one order, whatever the tile's shape; where blocks share a tile, the sums of
// their parts of K are added in order.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/device/gemm.h"
#include "cuda/device/gemm_fragments_sm90.h"
#include "cuda/device/gemm_ring_sm90.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/named_barrier.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/tma.h"

namespace gptoss::cuda {

// One thread. With args.early (gemm.h) the first stages' weights are on their way when the kernels
// before this one end.
template <class Shape>
__device__ __forceinline__ void produce(RingPlace<Shape> place, const GemmArgs& args,
                                        const CUtensorMap* weight_map,
                                        const CUtensorMap* token_maps) {
  if (!args.early) ptx::wait_for_dependencies();
  bool waited = !args.early;
  const StageRange<Shape::kSplits> stages(args);
  TileWalk<Shape::kSplits> walk(args);
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
    std::int32_t k = stages.begin;
    if (!waited) {
      RingPlace<Shape> first = place;
      for (; k < min(stages.begin + Shape::kStages, stages.end); ++k) {
        ask_weights(k);
        place.advance();
      }
      ptx::wait_for_dependencies();
      waited = true;
      for (std::int32_t i = stages.begin; i < k; ++i) {
        ask_tokens(i, first);
        first.advance();
      }
    }
    for (; k < stages.end; ++k) {
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

// The sums of a cluster's blocks to its first, in order, through the ring, which is free: a cluster
// takes one tile. Returns whether this block has them.
template <class Shape>
__device__ __forceinline__ bool add_splits(const void* ring, Accumulators<Shape>& d) {
  constexpr int kConsumerThreads = Shape::kConsumers * kWarpgroupThreads;
  constexpr int kFours = Shape::kMaxTokens / 8;
  static_assert(kFours * kConsumerThreads * 16 <= Shape::kStages * Shape::kStageBytes);
  const auto rank = static_cast<unsigned>(blockIdx.x) % Shape::kSplits;
  auto* sums = static_cast<float4*>(const_cast<void*>(ring)) + threadIdx.x;
  if (rank > 0) {
    ptx::named_barrier_sync<kConsumerThreads>(1);  // all products that read the ring are done
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      sums[i * kConsumerThreads] = make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
    }
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();  // they are there
  if (rank == 0) {
    for (unsigned other = 1; other < Shape::kSplits; ++other) {
      const float4* theirs = ptx::map_to_rank(sums, other);
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float4 v = theirs[i * kConsumerThreads];
        d[4 * i] += v.x;
        d[4 * i + 1] += v.y;
        d[4 * i + 2] += v.z;
        d[4 * i + 3] += v.w;
      }
    }
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();  // they are read
  return rank == 0;
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
__device__ __forceinline__ void consume(RingPlace<Shape> place, const GemmArgs& args, int warp,
                                        const void* ring) {
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
    const StageRange<Shape::kSplits> stages(args);
    multiply(place, stages.end - stages.begin, tokens.count, warp, d);
    if constexpr (Shape::kSplits > 1) {
      if (!add_splits<Shape>(ring, d)) continue;
    }
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
  extern __shared__ __align__(16) std::uint8_t raw_smem[];
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
    consume<Shape, kOutput>(place, args.gemm, warp, raw_smem);
  }
}

}  // namespace gptoss::cuda
