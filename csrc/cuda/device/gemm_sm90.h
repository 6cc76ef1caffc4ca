// The Hopper product out^T = W * x^T that linear_bf16_sm90 and linear_mxfp4_sm90 share.
//
// A persistent block takes tiles of 128 kRowTiles / 8 weight rows by up to kMaxTokens tokens. One
// thread of a producer warpgroup brings stages of 64 columns to shared memory by TMA (weights as
// they lie, tokens with the 128-byte swizzle); two consumer warpgroups read weight fragments into
// registers, decode MXFP4 on the way, and issue wgmma with them as A. A stage's products go out in
// two groups, so that one is running while the other's fragments are made. Every output is summed
// along K in one order, whatever the tile's shape.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/device/gemm.h"
#include "cuda/device/mxfp4_bf16.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/wgmma.h"

namespace gptoss::cuda {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerWarps = 4 * kConsumers;
constexpr int kWarpgroupThreads = 128;
constexpr int kGemmThreads = (kConsumers + 1) * kWarpgroupThreads;

// kTilesPerWarp row tiles of 16 a consumer warp, token tiles up to kMaxTokens in multiples of
// kGranule.
template <WeightFormat kFormatOf, int kTilesPerWarpOf, int kMaxTokensOf, int kGranuleOf>
struct GemmShape {
  static constexpr WeightFormat kFormat = kFormatOf;
  static constexpr int kTilesPerWarp = kTilesPerWarpOf;
  static constexpr int kMaxTokens = kMaxTokensOf;
  static constexpr int kGranule = kGranuleOf;
  static constexpr int kRowTiles = kConsumerWarps * kTilesPerWarp;
  static constexpr int kWeightTileBytes =
      kFormat == WeightFormat::kBf16 ? kStageSteps * kDenseTileBytes : kMxRecordBytes;
  static constexpr int kTokenBytes = kMaxTokens * kTokenRowBytes;
  static constexpr int kStageBytes =
      kTokenBytes + (kRowTiles * kWeightTileBytes + 1023) / 1024 * 1024;
  static constexpr int kSmemBytes = 227 * 1024;
  static constexpr int kMostStages = 24;
  static constexpr int kStages = (kSmemBytes - 1024 - 16 * kMostStages) / kStageBytes < kMostStages
                                     ? (kSmemBytes - 1024 - 16 * kMostStages) / kStageBytes
                                     : kMostStages;
  static constexpr int kUsedBytes = 1024 + kStages * kStageBytes + 16 * kStages;
  // Products go out in two groups a stage: of each row tile, or of half of the columns.
  static constexpr int kGroupSteps = kTilesPerWarp == 2 ? kStageSteps : kStageSteps / 2;
  static_assert(kTilesPerWarp <= 2 && kMaxTokens * kTilesPerWarp <= 256 && kStages >= 2);
};

// Where in the ring of stages a role stands.
template <int kStages>
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Addresses in the shared window.
template <class Shape>
struct GemmSmem {
  std::uint32_t stages;
  std::uint32_t barriers;

  __device__ explicit GemmSmem(const void* raw) {
    stages = (ptx::shared_address(raw) + 1023) & ~1023u;
    barriers = stages + Shape::kStages * Shape::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t tokens(int stage) const {
    return stages + stage * Shape::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t weights(int stage) const {
    return tokens(stage) + Shape::kTokenBytes;
  }
  __device__ __forceinline__ std::uint32_t full(int stage) const { return barriers + 16 * stage; }
  __device__ __forceinline__ std::uint32_t empty(int stage) const {
    return barriers + 16 * stage + 8;
  }
};

__device__ __forceinline__ uint4 load_shared_16(std::uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}

__device__ __forceinline__ std::uint32_t load_shared_4(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

template <class Shape>
__device__ __forceinline__ void produce(const GemmSmem<Shape>& smem, const GemmArgs& args,
                                        const CUtensorMap* weight_map,
                                        const CUtensorMap* token_map) {
  RingPlace<Shape::kStages> place;
  const std::int32_t num_tiles = args.tiles.count() * args.row_blocks;
  for (std::int32_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const TokenTile tokens = args.tiles.at(tile / args.row_blocks);
    const std::int32_t row_block = tile % args.row_blocks;
    const std::int32_t row_tile = tokens.expert * args.row_tiles + row_block * Shape::kRowTiles;
    const std::int32_t boxes = (tokens.count + args.box_tokens - 1) / args.box_tokens;
    const std::uint32_t num_bytes =
        Shape::kRowTiles * Shape::kWeightTileBytes +
        static_cast<std::uint32_t>(boxes * args.box_tokens) * kTokenRowBytes;
    for (std::int32_t k = 0; k < args.num_stages; ++k) {
      ptx::mbarrier_wait(smem.empty(place.stage), place.parity ^ 1);
      const std::uint32_t full = smem.full(place.stage);
      ptx::mbarrier_arrive_expect_bytes(full, num_bytes);
      if constexpr (Shape::kFormat == WeightFormat::kBf16) {
        ptx::tma_load(smem.weights(place.stage), weight_map, k * (Shape::kWeightTileBytes / 8),
                      row_tile, full);
      } else {
        ptx::tma_load(smem.weights(place.stage), weight_map, 0, k, row_tile, full);
      }
      for (std::int32_t box = 0; box < boxes; ++box) {
        ptx::tma_load(smem.tokens(place.stage) + box * args.box_tokens * kTokenRowBytes, token_map,
                      k * kStageCols, tokens.begin + box * args.box_tokens, full);
      }
      place.advance();
    }
  }
}

// The fragments of one group: kGroupSteps steps of 16 columns of one row tile.
template <class Shape, int kGroup>
struct GroupFragments {
  static constexpr int kSteps = Shape::kGroupSteps;

  __device__ __forceinline__ static void load(std::uint32_t weights, int warp, int lane,
                                              std::uint32_t (&a)[kSteps][4]) {
    const int row_tile = warp * Shape::kTilesPerWarp + (Shape::kTilesPerWarp == 2 ? kGroup : 0);
    const std::uint32_t record = weights + row_tile * Shape::kWeightTileBytes;
    constexpr int kFirst = Shape::kTilesPerWarp == 2 ? 0 : kGroup * kSteps;
    if constexpr (Shape::kFormat == WeightFormat::kBf16) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint4 v = load_shared_16(record + (kFirst + step) * kDenseTileBytes + lane * 16);
        a[step][0] = v.x;
        a[step][1] = v.y;
        a[step][2] = v.z;
        a[step][3] = v.w;
      }
    } else {
      const uint4 codes = load_shared_16(record + lane * 16);
      const std::uint32_t scales = load_shared_4(record + kMxCodeBytes + lane / 4 * 4);
      if constexpr (kSteps == 4) {
        decode_mxfp4<0>(codes.x, codes.y, scales,
                        *reinterpret_cast<std::uint32_t (*)[2][4]>(&a[0]));
        decode_mxfp4<1>(codes.z, codes.w, scales,
                        *reinterpret_cast<std::uint32_t (*)[2][4]>(&a[2]));
      } else if constexpr (kGroup == 0) {
        decode_mxfp4<0>(codes.x, codes.y, scales, a);
      } else {
        decode_mxfp4<1>(codes.z, codes.w, scales, a);
      }
    }
  }
};

// Accumulators of a warp: one array for every width, or the compiler would keep one each.
template <class Shape>
using Accumulators = float[Shape::kTilesPerWarp][Shape::kMaxTokens / 2];

// The products of one tile for the first kTokens tokens.
template <class Shape, int kTokens>
__device__ __forceinline__ void multiply(const GemmSmem<Shape>& smem, std::int32_t num_stages,
                                         RingPlace<Shape::kStages>& place, Accumulators<Shape>& d) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::uint32_t a[2][Shape::kGroupSteps][4];
  int previous = -1;

  const auto group = [&]<int kGroup>() {
    constexpr int kTile = Shape::kTilesPerWarp == 2 ? kGroup : 0;
    constexpr int kFirst = Shape::kTilesPerWarp == 2 ? 0 : kGroup * Shape::kGroupSteps;
    GroupFragments<Shape, kGroup>::load(smem.weights(place.stage), warp, lane, a[kGroup]);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Shape::kGroupSteps; ++step) {
      ptx::Wgmma<kTokens>::run(
          reinterpret_cast<float (&)[kTokens / 2]>(d[kTile]), a[kGroup][step],
          ptx::wgmma_descriptor(smem.tokens(place.stage) + (kFirst + step) * kTileK * 2));
    }
    ptx::wgmma_commit();
  };

  for (std::int32_t k = 0; k < num_stages; ++k) {
    ptx::mbarrier_wait(smem.full(place.stage), place.parity);
    ptx::wgmma_wait<1>();  // the first group of the stage before has read its fragments
    group.template operator()<0>();
    ptx::wgmma_wait<1>();  // all of the stage before is done: the producer may fill it again
    if (previous >= 0 && lane == 0) ptx::mbarrier_arrive(smem.empty(previous));
    group.template operator()<1>();
    previous = place.stage;
    place.advance();
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int tile = 0; tile < Shape::kTilesPerWarp; ++tile) ptx::wgmma_pin(d[tile]);
  if (lane == 0) ptx::mbarrier_arrive(smem.empty(previous));
}

// The smallest number of granules that holds the tile's tokens.
template <class Shape, int kTokens>
__device__ __forceinline__ void multiply_fitting(const GemmSmem<Shape>& smem, std::int32_t count,
                                                 std::int32_t num_stages,
                                                 RingPlace<Shape::kStages>& place,
                                                 Accumulators<Shape>& d) {
  if constexpr (kTokens > Shape::kGranule) {
    if (count <= kTokens - Shape::kGranule) {
      multiply_fitting<Shape, kTokens - Shape::kGranule>(smem, count, num_stages, place, d);
      return;
    }
  }
  multiply<Shape, kTokens>(smem, num_stages, place, d);
}

template <class Shape, TileOutput kOutput>
__device__ __forceinline__ void consume(const GemmSmem<Shape>& smem, const GemmArgs& args) {
  RingPlace<Shape::kStages> place;
  const std::int32_t num_tiles = args.tiles.count() * args.row_blocks;
  for (std::int32_t index = blockIdx.x; index < num_tiles; index += gridDim.x) {
    const TokenTile tokens = args.tiles.at(index / args.row_blocks);
    const std::int32_t row_block = index % args.row_blocks;
    Accumulators<Shape> d = {};
    multiply_fitting<Shape, Shape::kMaxTokens>(smem, tokens.count, args.num_stages, place, d);
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesPerWarp; ++tile) {
      const int warp = static_cast<int>(threadIdx.x) / kWarp;
      write_tile<kOutput, Shape::kMaxTokens / 8>(
          args.output, tokens.expert,
          row_block * Shape::kRowTiles + warp * Shape::kTilesPerWarp + tile, tokens.begin,
          tokens.count, d[tile]);
    }
  }
}

template <class Shape, TileOutput kOutput>
__device__ __forceinline__ void gemm_block(const GemmArgs& args, const CUtensorMap* weight_map,
                                           const CUtensorMap* token_map) {
  extern __shared__ std::uint8_t raw_smem[];
  const GemmSmem<Shape> smem(raw_smem);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      ptx::mbarrier_init(smem.full(stage), 1);
      ptx::mbarrier_init(smem.empty(stage), kConsumerWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();  // the barriers exist

  constexpr int kProducerRegisters = 40;
  constexpr int kConsumerRegisters = 232;
  if (threadIdx.x >= kConsumers * kWarpgroupThreads) {
    ptx::setmaxnreg_decrease<kProducerRegisters>();
    if (threadIdx.x == kConsumers * kWarpgroupThreads) {
      ptx::tma_prefetch_map(weight_map);
      ptx::tma_prefetch_map(token_map);
      produce(smem, args, weight_map, token_map);
    }
  } else {
    ptx::setmaxnreg_increase<kConsumerRegisters>();
    consume<Shape, kOutput>(smem, args);
  }
}

}  // namespace gptoss::cuda
