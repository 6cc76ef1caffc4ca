// The Hopper product out^T = W * x^T for few tokens an expert, MXFP4 weights: reading and decoding
// them is the work, so every multiprocessor gets the same share of them.
//
// The rows of all tiles of tokens, in units of 64, one after another, are cut into one stretch a
// block. A block takes up to four units of one tile at a time, one a consumer warpgroup: a producer
// brings stages of 128 columns to shared memory by TMA, warps decode their 16 rows into A fragments
// and issue wgmma for as many tokens as the tile has (16, 32, 48 or 64). Sums along K run in one
// order, wherever the cuts lie.
#pragma once

#include <cstdint>

#include "cuda/device/gemm_sm90.h"

namespace gptoss::cuda {

struct FewShape {
  static constexpr int kConsumers = 4;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kUnitTiles = 4;  // row tiles of a unit
  static constexpr int kMaxTokens = 64;
  static constexpr int kGranule = 16;
  static constexpr int kChunks = 2;  // of 64 columns, a stage
  static constexpr int kTokenChunkBytes = kMaxTokens * kTokenRowBytes;
  static constexpr int kTokenBytes = kChunks * kTokenChunkBytes;
  static constexpr int kWeightTileBytes = kChunks * kMxRecordBytes;
  static constexpr int kUnitBytes = kUnitTiles * kWeightTileBytes;
  static constexpr int kWeightBytes = kConsumers * kUnitBytes;
  // Tokens, weights, and the stage's two barriers; the next stage begins at a multiple of 1,024.
  static constexpr int kFull = kTokenBytes + kWeightBytes;
  static constexpr int kEmpty = kFull + 8;
  static constexpr int kStageBytes = (kFull + 16 + 1023) / 1024 * 1024;
  static constexpr int kStages = 6;
  static constexpr int kSmemBytes = 1024 + kStages * kStageBytes;
  static_assert(kSmemBytes <= 227 * 1024);
};

using FewSums = float[FewShape::kMaxTokens / 2];

// Where in the ring of stages a role stands.
struct FewRing {
  std::uint32_t first;
  std::uint32_t stage;
  std::uint32_t parity = 0;

  __device__ explicit FewRing(const void* smem)
      : first((ptx::shared_address(smem) + 1023) & ~1023u), stage(first) {}

  __device__ __forceinline__ std::uint32_t full() const { return stage + FewShape::kFull; }
  __device__ __forceinline__ std::uint32_t empty() const { return stage + FewShape::kEmpty; }
  __device__ __forceinline__ void advance() {
    stage += FewShape::kStageBytes;
    if (stage == first + FewShape::kStages * FewShape::kStageBytes) {
      stage = first;
      parity ^= 1;
    }
  }
};

// What a block multiplies at one time: `count` units of a tile of tokens from `first` on.
struct FewWork {
  TokenTile tokens{0, 0, 0};
  std::int32_t tile = -1;
  std::int32_t first = 0;
  std::int32_t count = 0;
};

// The block's stretch, piece by piece.
class FewWalk {
 public:
  __device__ FewWalk(const GemmArgs& args, std::int32_t num_tiles)
      : args_(args),
        unit_(stretch(num_tiles, blockIdx.x)),
        end_(stretch(num_tiles, blockIdx.x + 1)) {}

  // False at the end.
  __device__ __forceinline__ bool next(FewWork& work) {
    if (unit_ == end_) return false;
    const std::int32_t tile = unit_ / args_.row_blocks;
    if (tile != work.tile) work.tokens = args_.tiles.at(tile);
    work.tile = tile;
    work.first = unit_ - tile * args_.row_blocks;
    work.count = min(min(FewShape::kConsumers, end_ - unit_), args_.row_blocks - work.first);
    unit_ += work.count;
    return true;
  }

 private:
  __device__ std::int32_t stretch(std::int32_t num_tiles, std::uint32_t block) const {
    const std::int64_t units = static_cast<std::int64_t>(num_tiles) * args_.row_blocks;
    return static_cast<std::int32_t>(units * block / gridDim.x);
  }

  const GemmArgs& args_;
  std::int32_t unit_;
  std::int32_t end_;
};

// One thread. With args.early the tiles of tokens are final before the kernels before this one have
// ended, and weights never change: the first stages' weights are on their way when those end.
__device__ __forceinline__ void produce_few(FewRing ring, const MappedGemmArgs& args) {
  const GemmArgs& gemm = args.gemm;
  if (!gemm.early) ptx::wait_for_dependencies();
  FewWalk walk(gemm, gemm.tiles.count());
  FewWork work;
  bool waited = !gemm.early;
  while (walk.next(work)) {
    const std::int32_t row_tile =
        work.tokens.expert * gemm.row_tiles + work.first * FewShape::kUnitTiles;
    const std::int32_t boxes = (work.tokens.count + FewShape::kGranule - 1) / FewShape::kGranule;
    constexpr std::uint32_t kBoxBytes = FewShape::kGranule * kTokenRowBytes;
    const std::uint32_t num_bytes =
        work.count * FewShape::kUnitBytes + boxes * FewShape::kChunks * kBoxBytes;
    const auto ask_weights = [&](std::int32_t k) {
      ptx::mbarrier_wait(ring.empty(), ring.parity ^ 1);
      ptx::mbarrier_arrive_expect_bytes(ring.full(), num_bytes);
      for (std::int32_t unit = 0; unit < work.count; ++unit) {
        ptx::tma_load(ring.stage + FewShape::kTokenBytes + unit * FewShape::kUnitBytes,
                      &args.weight_map, 0, k * FewShape::kChunks,
                      row_tile + unit * FewShape::kUnitTiles, ring.full());
      }
    };
    const auto ask_tokens = [&](std::int32_t k, std::uint32_t stage) {
      for (std::int32_t box = 0; box < boxes; ++box) {
#pragma unroll
        for (int chunk = 0; chunk < FewShape::kChunks; ++chunk) {
          ptx::tma_load(stage + chunk * FewShape::kTokenChunkBytes + box * kBoxBytes,
                        &args.token_map, (k * FewShape::kChunks + chunk) * kStageCols,
                        work.tokens.begin + box * FewShape::kGranule, stage + FewShape::kFull);
        }
      }
    };
    std::int32_t k = 0;
    if (!waited) {
      FewRing ahead = ring;
      for (; k < min(FewShape::kStages, gemm.num_stages); ++k) {
        ask_weights(k);
        ring.advance();
      }
      ptx::wait_for_dependencies();
      waited = true;
      for (std::int32_t i = 0; i < k; ++i) {
        ask_tokens(i, ahead.stage);
        ahead.advance();
      }
    }
    for (; k < gemm.num_stages; ++k) {
      ask_weights(k);
      ask_tokens(k, ring.stage);
      ring.advance();
    }
  }
}

// The fewest granules, kTokens or more, that hold `width` tokens; commits happen inside
// (issue_fitting of gemm_sm90.h). The narrowest is asked for first: of few tokens most tiles are
// such.
template <int kTokens>
__device__ __forceinline__ void issue_few(std::uint32_t descriptor, std::int32_t width,
                                          const Fragments& a, FewSums& d) {
  if constexpr (kTokens == FewShape::kMaxTokens) {
    issue<kTokens>(descriptor, a, d);
  } else if (width <= kTokens) {
    issue<kTokens>(descriptor, a, d);
  } else {
    issue_few<kTokens + FewShape::kGranule>(descriptor, width, a, d);
  }
}

// The products of one unit: of one loop for each width the compiler makes poor code. Fragments
// alternate between two sets of registers: one is read by running products while the other is made.
// What a stage holds for this lane is fetched as soon as the registers are free.
__device__ __forceinline__ void multiply_few(FewRing& ring, std::int32_t num_stages,
                                             std::int32_t width, std::uint32_t my_weights,
                                             std::uint32_t my_scales, FewSums& d) {
  const bool releases = threadIdx.x % kWarp == 0;
  Fragments a[2] = {};
  StageWeights<WeightFormat::kMxfp4> weights;
  std::uint32_t stage_before = 0;
  const auto fetch = [&](int chunk) {
    weights.codes = ptx::load_shared_16(ring.stage + my_weights + chunk * kMxRecordBytes);
    weights.scales = ptx::load_shared_4(ring.stage + my_scales + chunk * kMxRecordBytes);
  };
  const auto release = [&] {
    if (releases && stage_before != 0) ptx::mbarrier_arrive(stage_before + FewShape::kEmpty);
  };
  const auto wait_and_fetch = [&] {
    ptx::mbarrier_wait(ring.full(), ring.parity);
    fetch(0);
  };
  const auto first_chunk = [&] {
    weights.decode(a[0]);
    issue_few<FewShape::kGranule>(ptx::wgmma_descriptor_address(ring.stage), width, a[0], d);
    fetch(1);
    ptx::wgmma_wait<1>();  // the chunk before: the stage before and these registers are free
    keep(a[1]);
    release();
    stage_before = ring.stage;
  };
  const auto second_chunk = [&] {
    weights.decode(a[1]);
    issue_few<FewShape::kGranule>(
        ptx::wgmma_descriptor_address(ring.stage + FewShape::kTokenChunkBytes), width, a[1], d);
    ptx::wgmma_wait<1>();
    keep(a[0]);
    ring.advance();
  };
  wait_and_fetch();
  for (std::int32_t left = num_stages; left > 0; --left) {
    first_chunk();
    second_chunk();
    if (left > 1) wait_and_fetch();
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(d);
  keep(a[0]);
  keep(a[1]);
  release();
}

template <TileOutput kOutput>
__device__ __forceinline__ void multiply_and_write(FewRing& ring, const GemmArgs& args,
                                                   const FewWork& work, int warp) {
  const std::int32_t row_tile = work.first * FewShape::kUnitTiles + warp;
  const BiasPair bias = load_bias(args.output, work.tokens.expert, row_tile);
  const std::uint32_t lane = threadIdx.x % kWarp;
  const std::uint32_t my_tile = FewShape::kTokenBytes + warp * FewShape::kWeightTileBytes;
  FewSums d = {};
  multiply_few(ring, args.num_stages, work.tokens.count, my_tile + lane * 16,
               my_tile + kMxCodeBytes + lane / 4 * 4, d);
  write_tile<kOutput, FewShape::kMaxTokens / 8>(args.output, bias, row_tile, work.tokens.begin,
                                                work.tokens.count, d);
}

template <TileOutput kOutput>
__device__ __forceinline__ void consume_few(FewRing ring, const GemmArgs& args, int warp) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  FewWalk walk(args, args.tiles.count());
  FewWork work;
  while (walk.next(work)) {
    if (warp / 4 >= work.count) {  // no unit for this warpgroup: it passes the stages on
      for (std::int32_t k = 0; k < args.num_stages; ++k) {
        ptx::mbarrier_wait(ring.full(), ring.parity);
        if (threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(ring.empty());
        ring.advance();
      }
    } else {
      multiply_and_write<kOutput>(ring, args, work, warp);
    }
  }
}

template <TileOutput kOutput>
__device__ __forceinline__ void gemm_few_block(const MappedGemmArgs& args) {
  extern __shared__ std::uint8_t raw_smem[];
  FewRing ring(raw_smem);
  if (threadIdx.x == 0) {
    for (int i = 0; i < FewShape::kStages; ++i) {
      ptx::mbarrier_init(ring.full(), 1);
      ptx::mbarrier_init(ring.empty(), 4 * FewShape::kConsumers);
      ring.advance();
    }
    ptx::fence_mbarrier_init();
    ptx::tma_prefetch_map(&args.weight_map);
    ptx::tma_prefetch_map(&args.token_map);
  }
  __syncthreads();  // the barriers exist
  // 640 threads have 96 registers each; 4 x 128 x 112 + 128 x 32 are no more.
  constexpr int kProducerRegisters = 32;
  constexpr int kConsumerRegisters = 112;
  // The same in all lanes, as the compiler should know (gemm_block).
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp >= 4 * FewShape::kConsumers) {
    ptx::setmaxnreg_decrease<kProducerRegisters>();
    if (threadIdx.x == FewShape::kConsumers * kWarpgroupThreads) {
      produce_few(FewRing(raw_smem), args);
    }
  } else {
    ptx::setmaxnreg_increase<kConsumerRegisters>();
    consume_few<kOutput>(FewRing(raw_smem), args.gemm, warp);
  }
}

}  // namespace gptoss::cuda
