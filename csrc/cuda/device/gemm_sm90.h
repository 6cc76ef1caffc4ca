// The Hopper product out^T = W * x^T that linear_bf16_sm90 and linear_mxfp4_sm90 share.
//
// A persistent block takes tiles of 16 kRowTiles weight rows by up to kMaxTokens tokens. One thread
// of a producer warpgroup brings stages of 64 columns to shared memory by TMA (weights as they lie,
// tokens with the 128-byte swizzle); consumer warpgroups read weight fragments into registers,
// decode MXFP4 on the way, and issue wgmma with them as A, for as many tokens as the tile has: a
// stage's products run while the fragments of the next are made. Every output is summed along K in
// one order, whatever the tile's shape.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/device/gemm.h"
#include "cuda/device/mxfp4_bf16.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/wgmma.h"

namespace gptoss::cuda {

constexpr int kWarpgroupThreads = 128;

// kConsumers warpgroups of 64 rows each; token tiles up to kMaxTokens, in multiples of kGranule; a
// stage is kChunks times 64 columns.
template <WeightFormat kFormatOf, int kConsumersOf, int kMaxTokensOf, int kGranuleOf, int kChunksOf>
struct GemmShape {
  static constexpr WeightFormat kFormat = kFormatOf;
  static constexpr int kConsumers = kConsumersOf;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kMaxTokens = kMaxTokensOf;
  static constexpr int kGranule = kGranuleOf;
  static constexpr int kChunks = kChunksOf;
  static constexpr int kRowTiles = 4 * kConsumers;  // one a consumer warp
  static constexpr int kWeightChunkBytes =
      kFormat == WeightFormat::kBf16 ? kStageSteps * kDenseTileBytes : kMxRecordBytes;
  static constexpr int kWeightTileBytes = kChunks * kWeightChunkBytes;
  static constexpr int kTokenChunkBytes = kMaxTokens * kTokenRowBytes;
  static constexpr int kTokenBytes = kChunks * kTokenChunkBytes;
  static constexpr int kStageBytes =
      kTokenBytes + (kRowTiles * kWeightTileBytes + 1023) / 1024 * 1024;
  // All that a block may have, less the alignment of the first stage and the barriers.
  static constexpr int kMostStages = 24;
  static constexpr int kRoom = 227 * 1024 - 1024 - 16 * kMostStages;
  static constexpr int kStages =
      kRoom / kStageBytes < kMostStages ? kRoom / kStageBytes : kMostStages;
  static constexpr int kSmemBytes = 1024 + kStages * kStageBytes + 16 * kStages;
  // Accumulators of 128 registers want more than an equal share; the producer needs few.
  static constexpr bool kMoveRegisters = kConsumers == 2;
  static_assert(kMaxTokens <= 256 && kMaxTokens % kGranule == 0 && kGranule % 16 == 0);
  static_assert(kChunks == 1 || (kChunks == 2 && kFormat == WeightFormat::kMxfp4));
  static_assert(kStages >= 4, "two stages may be read from while others are filled");
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
  __device__ __forceinline__ void advance() {
    stage += Shape::kStageBytes;
    barrier += 16;
    if (barrier == first_barrier + 16 * Shape::kStages) {
      stage = first_stage;
      barrier = first_barrier;
      parity ^= 1;
    }
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
__device__ __forceinline__ void produce(RingPlace<Shape> place, const GemmArgs& args,
                                        const CUtensorMap* weight_map,
                                        const CUtensorMap* token_map) {
  const std::int32_t num_tiles = args.tiles.count() * args.row_blocks;
  for (std::int32_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const TokenTile tokens = args.tiles.at(tile / args.row_blocks);
    const std::int32_t row_block = tile % args.row_blocks;
    const std::int32_t row_tile = tokens.expert * args.row_tiles + row_block * Shape::kRowTiles;
    const std::int32_t boxes = (tokens.count + args.box_tokens - 1) / args.box_tokens;
    const std::uint32_t box_bytes = args.box_tokens * kTokenRowBytes;
    const std::uint32_t num_bytes =
        Shape::kRowTiles * Shape::kWeightTileBytes + Shape::kChunks * boxes * box_bytes;
    for (std::int32_t k = 0; k < args.num_stages; ++k) {
      ptx::mbarrier_wait(place.empty(), place.parity ^ 1);
      ptx::mbarrier_arrive_expect_bytes(place.full(), num_bytes);
      if constexpr (Shape::kFormat == WeightFormat::kBf16) {
        ptx::tma_load(place.weights(), weight_map, k * (Shape::kWeightChunkBytes / 8), row_tile,
                      place.full());
      } else {
        ptx::tma_load(place.weights(), weight_map, 0, k * Shape::kChunks, row_tile, place.full());
      }
#pragma unroll
      for (int chunk = 0; chunk < Shape::kChunks; ++chunk) {
        for (std::int32_t box = 0; box < boxes; ++box) {
          ptx::tma_load(place.tokens() + chunk * Shape::kTokenChunkBytes + box * box_bytes,
                        token_map, (k * Shape::kChunks + chunk) * kStageCols,
                        tokens.begin + box * args.box_tokens, place.full());
        }
      }
      place.advance();
    }
  }
}

using Fragments = std::uint32_t[kStageSteps][4];

// A consumer lane's part of one row tile of a stage: fetched as soon as it is there, made fragments
// when the registers for those are free.
template <WeightFormat kFormat>
struct StageWeights;

template <>
struct StageWeights<WeightFormat::kBf16> {
  std::uint32_t address;

  __device__ __forceinline__ void fetch(std::uint32_t tile, int lane) {
    address = tile + lane * 16;
  }
  __device__ __forceinline__ void decode(Fragments& a) const {
#pragma unroll
    for (int i = 0; i < kStageSteps; ++i) {
      const uint4 v = load_shared_16(address + i * kDenseTileBytes);
      a[i][0] = v.x;
      a[i][1] = v.y;
      a[i][2] = v.z;
      a[i][3] = v.w;
    }
  }
};

template <>
struct StageWeights<WeightFormat::kMxfp4> {
  uint4 codes;
  std::uint32_t scales;

  __device__ __forceinline__ void fetch(std::uint32_t tile, int lane) {
    codes = load_shared_16(tile + lane * 16);
    scales = load_shared_4(tile + kMxCodeBytes + lane / 4 * 4);
  }
  __device__ __forceinline__ void decode(Fragments& a) const { decode_mxfp4(codes, scales, a); }
};

// Until here the compiler must keep the registers of fragments that products may still be reading:
// it counts them as free from the instruction on that starts those.
__device__ __forceinline__ void keep(const Fragments& a) {
#pragma unroll
  for (int i = 0; i < 4 * kStageSteps; ++i) asm volatile("" ::"r"(a[i / 4][i % 4]) : "memory");
}

template <class Shape>
using Accumulators = float[Shape::kMaxTokens / 2];

// A stage's products for the first kTokens tokens.
template <int kTokens, int kCount>
__device__ __forceinline__ void issue(std::uint32_t descriptor, const Fragments& a,
                                      float (&d)[kCount]) {
  ptx::wgmma_fence();  // the fragments are written before the products read them
#pragma unroll
  for (int step = 0; step < kStageSteps; ++step) {
    ptx::Wgmma<kTokens>::run(reinterpret_cast<float (&)[kTokens / 2]>(d), a[step],
                             ptx::wgmma_descriptor(descriptor + step * kTileK * 2 / 16));
  }
  ptx::wgmma_commit();
}

// The same for the fewest granules, from kFrom to kTo, that hold `width` tokens. Commits happen
// inside: after the branches meet they would make one more group.
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

// The products of one tile for its first `width` tokens, looked at each chunk: of one loop for each
// width the compiler makes poor code. Fragments alternate between two sets of registers: one is
// read by running products while the other is made.
template <class Shape>
__device__ __forceinline__ void multiply(RingPlace<Shape>& place, std::int32_t num_stages,
                                         std::int32_t width, int warp, Accumulators<Shape>& d) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::uint32_t my_weights = warp * Shape::kWeightTileBytes;
  StageWeights<Shape::kFormat> weights;
  Fragments a[2] = {};
  std::uint32_t barrier_before = 0;   // of the stage before this one
  std::uint32_t barrier_before2 = 0;  // and of the one before that

  const auto release = [&](std::uint32_t barrier) {
    if (barrier != 0 && lane == 0) ptx::mbarrier_arrive(place.empty_of(barrier));
  };
  const auto fetch = [&](int chunk) {
    weights.fetch(place.weights() + my_weights + chunk * Shape::kWeightChunkBytes, lane);
  };
  const auto wait_full = [&] { ptx::mbarrier_wait(place.full(), place.parity); };
  // Chunk kSet of a stage of two, or a stage of one.
  const auto chunk = [&]<int kSet>(bool last) {
    constexpr bool kFirstOfStage = Shape::kChunks == 1 || kSet == 0;
    constexpr bool kLastOfStage = Shape::kChunks == 1 || kSet == 1;
    ptx::wgmma_wait<1>();  // all but the chunk before: these registers, and a stage, are free
    keep(a[kSet]);
    if constexpr (Shape::kChunks == 1) {
      release(barrier_before2);
      barrier_before2 = barrier_before;
    } else if constexpr (kLastOfStage) {
      release(barrier_before);
    }
    if constexpr (kLastOfStage) barrier_before = place.barrier;
    weights.decode(a[kSet]);
    const std::uint32_t tokens = place.tokens() + (kFirstOfStage ? 0 : Shape::kTokenChunkBytes);
    issue_fitting<Shape, 1, Shape::kMaxTokens / Shape::kGranule>(
        ptx::wgmma_descriptor_address(tokens), width, a[kSet], d);
    if constexpr (kLastOfStage) {
      place.advance();
      if (last) return;
      wait_full();
      fetch(0);
    } else {
      fetch(1);
    }
  };

  wait_full();
  fetch(0);
  if constexpr (Shape::kChunks == 2) {
    for (std::int32_t k = 0; k < num_stages; ++k) {
      chunk.template operator()<0>(false);
      chunk.template operator()<1>(k + 1 == num_stages);
    }
  } else {
    for (std::int32_t k = 0; k < num_stages; k += 2) {
      chunk.template operator()<0>(k + 1 == num_stages);
      if (k + 1 < num_stages) chunk.template operator()<1>(k + 2 == num_stages);
    }
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(d);
  keep(a[0]);
  keep(a[1]);
  if constexpr (Shape::kChunks == 1) release(barrier_before2);
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
  const std::int32_t num_tiles = args.tiles.count() * args.row_blocks;
  for (std::int32_t index = blockIdx.x; index < num_tiles; index += gridDim.x) {
    const TokenTile tokens = args.tiles.at(index / args.row_blocks);
    const std::int32_t row_block = index % args.row_blocks;
    if constexpr (kOutput == TileOutput::kAdd) {
      for (std::int32_t i = threadIdx.x; i < tokens.count;
           i += Shape::kConsumers * kWarpgroupThreads) {
        prefetch_rows(args.output, tokens.begin + i, row_block * Shape::kRowTiles * kTileRows,
                      Shape::kRowTiles * kTileRows);
      }
    }
    Accumulators<Shape> d = {};
    multiply(place, args.num_stages, tokens.count, warp, d);
    write_tile<kOutput, Shape::kMaxTokens / 8>(args.output, tokens.expert,
                                               row_block * Shape::kRowTiles + warp, tokens.begin,
                                               tokens.count, d);
  }
}

// A kernel's parameter, __grid_constant__: the copy engine reads the maps where they lie.
struct MappedGemmArgs {
  CUtensorMap weight_map;
  CUtensorMap token_map;
  GemmArgs gemm;
};

template <class Shape, TileOutput kOutput>
__device__ __forceinline__ void gemm_block(const MappedGemmArgs& args) {
  extern __shared__ std::uint8_t raw_smem[];
  const RingPlace<Shape> place(raw_smem);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      const std::uint32_t barrier = place.first_barrier + 16 * stage;
      ptx::mbarrier_init(barrier, 1);
      ptx::mbarrier_init(place.empty_of(barrier), 4 * Shape::kConsumers);
    }
    ptx::fence_mbarrier_init();
    ptx::tma_prefetch_map(&args.weight_map);
    ptx::tma_prefetch_map(&args.token_map);
  }
  __syncthreads();  // the barriers exist
  ptx::wait_for_dependencies();
  ptx::launch_dependents();

  constexpr int kProducerRegisters = 40;
  constexpr int kConsumerRegisters = 232;
  // Known to be the same in all lanes, the role's branch leaves warps whole for the compiler, which
  // keeps addresses and descriptors in uniform registers then.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp >= 4 * Shape::kConsumers) {
    if constexpr (Shape::kMoveRegisters) ptx::setmaxnreg_decrease<kProducerRegisters>();
    if (threadIdx.x == Shape::kConsumers * kWarpgroupThreads) {
      produce(place, args.gemm, &args.weight_map, &args.token_map);
    }
  } else {
    if constexpr (Shape::kMoveRegisters) ptx::setmaxnreg_increase<kConsumerRegisters>();
    consume<Shape, kOutput>(place, args.gemm, warp);
  }
}

}  // namespace gptoss::cuda
