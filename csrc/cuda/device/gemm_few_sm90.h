// The Hopper product out^T = W * x^T for few tokens an expert, MXFP4 weights: reading and decoding
// them is the work. A block takes a piece of up to four units of 64 rows of one tile of tokens at a
// time, a unit a consumer warpgroup: a producer brings stages of 192 columns to shared memory by
// TMA, warps decode their 16 rows into A fragments and issue wgmma for as many tokens as the tile
// has (16, 32, 48 or 64). The pieces of all tiles, one after another, are cut into one stretch a
// block, so that every multiprocessor has the same share of the work. Sums along K run in one
// order, wherever the cuts lie.
//
// Few and large boxes: of the weights as many bytes in one piece as three records are, tokens of a
// stage by one instruction. H200, 282 MB of weights with 64 tokens an expert, without products: in
// boxes of 128 bytes 110 us, so 80, weights alone 68.
#pragma once

#include <cstdint>

#include "cuda/device/gemm_sm90.h"

namespace gptoss::cuda {

struct FewShape {
  static constexpr int kConsumers = 4;
  static constexpr int kWarps = 4 * kConsumers;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kUnitTiles = 4;  // row tiles of a unit
  static constexpr int kMaxTokens = 64;
  static constexpr int kGranule = 16;
  static constexpr int kWidths = kMaxTokens / kGranule;
  static constexpr int kChunks = 3;  // of 64 columns, a stage
  static constexpr int kTokenBytes = kChunks * kMaxTokens * kTokenRowBytes;
  static constexpr int kWeightTileBytes = kChunks * kMxRecordBytes;
  static constexpr int kUnitBytes = kUnitTiles * kWeightTileBytes;
  // Tokens, weights, and the stage's two barriers.
  static constexpr int kFull = kTokenBytes + kConsumers * kUnitBytes;
  static constexpr int kEmpty = kFull + 8;
  static constexpr int kStageBytes = (kFull + 16 + 1023) / 1024 * 1024;
  static constexpr int kStages = 4;
  static constexpr int kSmemBytes = 1024 + kStages * kStageBytes;
  static_assert(kSmemBytes <= 227 * 1024);
};

// A kernel's parameter, __grid_constant__: the copy engine reads the maps where they lie.
struct FewArgs {
  CUtensorMap weight_map;
  // Boxes of 16, 32, 48 or 64 tokens by a stage's chunks.
  CUtensorMap token_maps[FewShape::kWidths];
  std::int32_t num_chunks;
  std::int32_t list_size;  // tiles for which the list has memory
  GemmArgs gemm;
};

using FewSums = float[FewShape::kMaxTokens / 2];

// Where in the ring of stages a role stands.
struct FewRing {
  std::uint32_t first;
  std::uint32_t stage;
  std::uint32_t parity = 0;

  __device__ explicit FewRing(const void* smem)
      : first((ptx::shared_address(smem) + 1023) & ~1023u), stage(first) {}

  // One thread, once. Every one of kWarps consumer warps empties a stage.
  __device__ void init() const {
    for (int i = 0; i < FewShape::kStages; ++i) {
      ptx::mbarrier_init(first + i * FewShape::kStageBytes + FewShape::kFull, 1);
      ptx::mbarrier_init(first + i * FewShape::kStageBytes + FewShape::kEmpty, FewShape::kWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __device__ __forceinline__ std::uint32_t full() const { return stage + FewShape::kFull; }
  __device__ __forceinline__ std::uint32_t empty() const { return stage + FewShape::kEmpty; }
  __device__ __forceinline__ void wait_full() const { ptx::mbarrier_wait(full(), parity); }
  __device__ __forceinline__ void wait_empty() const { ptx::mbarrier_wait(empty(), parity ^ 1); }
  __device__ __forceinline__ void advance() {
    stage += FewShape::kStageBytes;
    if (stage == first + FewShape::kStages * FewShape::kStageBytes) {
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

// What a block multiplies at one time: `num_units` units of a tile of tokens, kConsumers at most.
struct Piece {
  TokenTile tokens{};
  std::int32_t first_unit = 0;
  std::int32_t num_units = 0;
};

// A block's stretch of the list's work (tile_work), which begins and ends between units: what it
// has of one tile of tokens in pieces of almost the same size. args.row_blocks units a tile. Whole
// warps make one: the number of tiles and the first of the list, most of the times all of it, are
// asked for at once, since nothing can be asked of weights before.
class PieceWalk {
 public:
  // The list has memory for list_size tiles.
  __device__ PieceWalk(const GemmArgs& args, std::int32_t list_size) : args_(args) {
    const auto lane = static_cast<std::int32_t>(threadIdx.x) % kWarp;
    first_ = lane < list_size ? args.tiles.list[lane] : TokenTile{};
    num_tiles_ = args.tiles.count();
    const std::int64_t work = std::int64_t{at(num_tiles_).work_before} * args.row_blocks;
    unit_ = first_unit(work * blockIdx.x / gridDim.x);
    end_ = first_unit(work * (blockIdx.x + 1) / gridDim.x);
    tile_ = unit_ / args.row_blocks;
    tokens_ = at(tile_);
    next_tokens_ = args.tiles.list[min(tile_ + 1, num_tiles_)];
  }

  // False at the end. Any lanes.
  __device__ __forceinline__ bool next(Piece& piece) {
    if (unit_ == end_) return false;
    if (unit_ == (tile_ + 1) * args_.row_blocks) {
      ++tile_;
      tokens_ = next_tokens_;
      next_tokens_ = args_.tiles.list[min(tile_ + 1, num_tiles_)];
    }
    piece.tokens = tokens_;
    piece.first_unit = unit_ - tile_ * args_.row_blocks;
    const std::int32_t left = min(end_ - unit_, args_.row_blocks - piece.first_unit);
    const std::int32_t pieces = (left + FewShape::kConsumers - 1) / FewShape::kConsumers;
    piece.num_units = (left + pieces - 1) / pieces;
    unit_ += piece.num_units;
    return true;
  }

 private:
  // The same of all lanes.
  __device__ __forceinline__ TokenTile at(std::int32_t tile) const {
    if (tile >= kWarp) return args_.tiles.list[tile];
    const auto of = [&](std::int32_t value) { return __shfl_sync(0xffffffffu, value, tile); };
    return {of(first_.expert), of(first_.begin), of(first_.count), of(first_.work_before)};
  }
  // The unit that so much work, of units before it, is in.
  __device__ std::int32_t first_unit(std::int64_t work) const {
    const auto lane = static_cast<std::int32_t>(threadIdx.x) % kWarp;
    const auto of_rows = static_cast<std::int32_t>(work / args_.row_blocks);
    const bool has_begun = lane < num_tiles_ && first_.work_before <= of_rows;
    std::int32_t begun = __popc(__ballot_sync(0xffffffffu, has_begun));  // tiles
#pragma unroll 4
    for (std::int32_t base = kWarp; base < num_tiles_; base += kWarp) {
      const std::int32_t tile = base + lane;
      const bool begins = tile < num_tiles_ && args_.tiles.list[tile].work_before <= of_rows;
      begun += __popc(__ballot_sync(0xffffffffu, begins));
    }
    if (begun == 0) return 0;  // no tiles
    const std::int32_t before = at(begun - 1).work_before;
    const std::int64_t into = work - std::int64_t{before} * args_.row_blocks;
    const auto units = static_cast<std::int32_t>(into / (at(begun).work_before - before));
    return (begun - 1) * args_.row_blocks + units;
  }

  const GemmArgs& args_;
  TokenTile first_;
  TokenTile tokens_;
  TokenTile next_tokens_;
  std::int32_t num_tiles_;
  std::int32_t unit_;
  std::int32_t end_;
  std::int32_t tile_;
};

// One lane. The stages of one piece: ask_weights(k, ring) waits until the stage is empty, says
// how many bytes it will have and asks for weights, ask_tokens(k, ring) for the rest. While
// `waited` is false the kernels before this one may be running (args.early): they do not write
// weights, so the first stages' are on their way when those end.
template <class AskWeights, class AskTokens>
__device__ __forceinline__ void produce_piece(FewRing& ring, std::int32_t num_stages, bool& waited,
                                              AskWeights&& ask_weights, AskTokens&& ask_tokens) {
  std::int32_t k = 0;
  if (!waited) {
    FewRing ahead = ring;
    for (; k < min(FewShape::kStages, num_stages); ++k) {
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

// One warp.
__device__ __forceinline__ void produce_few(FewRing ring, const FewArgs& args) {
  const GemmArgs& gemm = args.gemm;
  bool waited = !gemm.early;
  if (waited) ptx::wait_for_dependencies();
  PieceWalk walk(gemm, args.list_size);
  if (threadIdx.x % kWarp > 0) return;
  Piece piece;
  while (walk.next(piece)) {
    const std::int32_t row_tile =
        piece.tokens.expert * gemm.row_tiles + piece.first_unit * FewShape::kUnitTiles;
    const std::int32_t width = (piece.tokens.count + FewShape::kGranule - 1) / FewShape::kGranule;
    constexpr std::uint32_t kWidthBytes = FewShape::kChunks * FewShape::kGranule * kTokenRowBytes;
    const std::uint32_t num_bytes = piece.num_units * FewShape::kUnitBytes + width * kWidthBytes;
    produce_piece(
        ring, gemm.num_stages, waited,
        [&](std::int32_t k, const FewRing& at) {
          at.wait_empty();
          ptx::mbarrier_arrive_expect_bytes(at.full(), num_bytes);
          for (std::int32_t unit = 0; unit < piece.num_units; ++unit) {
            ptx::tma_load(at.stage + FewShape::kTokenBytes + unit * FewShape::kUnitBytes,
                          &args.weight_map, 0, k * FewShape::kChunks,
                          row_tile + unit * FewShape::kUnitTiles, at.full());
          }
        },
        [&](std::int32_t k, const FewRing& at) {
          ptx::tma_load(at.stage, &args.token_maps[width - 1], 0, piece.tokens.begin,
                        k * FewShape::kChunks, at.full());
        });
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
// The chunks of the last stage that are past the last column are zeros.
__device__ __forceinline__ void multiply_few(FewRing& ring, std::int32_t num_chunks,
                                             std::int32_t width, std::uint32_t my_weights,
                                             std::uint32_t my_scales, FewSums& d) {
  const bool releases = threadIdx.x % kWarp == 0;
  const std::uint32_t chunk_bytes =
      (width + FewShape::kGranule - 1) / FewShape::kGranule * FewShape::kGranule * kTokenRowBytes;
  Fragments a[2] = {};
  uint4 codes;
  std::uint32_t scales[FewShape::kChunks];
  bool has_large_scales = false;
  std::uint32_t stage_before = 0;
  const auto release = [&] {
    if (releases && stage_before != 0) ptx::mbarrier_arrive(stage_before + FewShape::kEmpty);
  };
  const auto enter_stage = [&] {
    ring.wait_full();
    codes = ptx::load_shared_16(ring.stage + my_weights);
    std::uint32_t all_scales = 0;
#pragma unroll
    for (int chunk = 0; chunk < FewShape::kChunks; ++chunk) {
      scales[chunk] = ptx::load_shared_4(ring.stage + my_scales + chunk * kMxRecordBytes);
      all_scales |= scales[chunk];
    }
    has_large_scales = __any_sync(0xffffffffu, (all_scales & kMaybeLargeScales) != 0);
  };
  const auto multiply_stage = [&]<int kFirstSet>(bool is_last) {
#pragma unroll
    for (int chunk = 0; chunk < FewShape::kChunks; ++chunk) {
      const int set = (kFirstSet + chunk) % 2;
      if (has_large_scales) {
        decode_mxfp4<true>(codes, scales[chunk], a[set]);
      } else {
        decode_mxfp4<false>(codes, scales[chunk], a[set]);
      }
      issue_few<FewShape::kGranule>(ptx::wgmma_descriptor_address(ring.stage + chunk * chunk_bytes),
                                    width, a[set], d);
      if (chunk + 1 < FewShape::kChunks) {
        codes = ptx::load_shared_16(ring.stage + my_weights + (chunk + 1) * kMxRecordBytes);
      }
      ptx::wgmma_wait<1>();  // the chunk before: those registers are free, a stage before also
      keep(a[1 - set]);
      if (chunk == 0) release();
    }
    stage_before = ring.stage;
    ring.advance();
    if (!is_last) enter_stage();
  };
  static_assert(FewShape::kChunks % 2 == 1, "stages begin with either set in turn");
  enter_stage();
  for (std::int32_t left = num_chunks; left > 0; left -= 2 * FewShape::kChunks) {
    multiply_stage.template operator()<0>(left <= FewShape::kChunks);
    if (left <= FewShape::kChunks) break;
    multiply_stage.template operator()<1>(left <= 2 * FewShape::kChunks);
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(d);
  keep(a[0]);
  keep(a[1]);
  release();
}

template <TileOutput kOutput>
__device__ __forceinline__ void multiply_and_write(FewRing& ring, const FewArgs& args,
                                                   const Piece& piece, int warp) {
  const TileOutputArgs& output = args.gemm.output;
  const std::int32_t row_tile = piece.first_unit * FewShape::kUnitTiles + warp;
  const BiasPair bias = load_bias(output, piece.tokens.expert, row_tile);
  const std::uint32_t lane = threadIdx.x % kWarp;
  const std::uint32_t my_tile = FewShape::kTokenBytes + warp * FewShape::kWeightTileBytes;
  FewSums d = {};
  multiply_few(ring, args.num_chunks, piece.tokens.count, my_tile + lane * 16,
               my_tile + kMxCodeBytes + lane / 4 * 4, d);
  write_tile<kOutput, FewShape::kMaxTokens / 8>(output, bias, row_tile, piece.tokens.begin,
                                                piece.tokens.count, d);
}

template <TileOutput kOutput>
__device__ __forceinline__ void consume_few(FewRing ring, const FewArgs& args, int warp) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  PieceWalk walk(args.gemm, args.list_size);
  Piece piece;
  while (walk.next(piece)) {
    if (warp / FewShape::kUnitTiles >= piece.num_units) {  // no unit for this warpgroup
      ring.pass(args.gemm.num_stages);
    } else {
      multiply_and_write<kOutput>(ring, args, piece, warp);
    }
  }
}

template <TileOutput kOutput>
__device__ __forceinline__ void gemm_few_block(const FewArgs& args) {
  extern __shared__ std::uint8_t raw_smem[];
  const FewRing ring(raw_smem);
  if (threadIdx.x == 0) {
    ring.init();
    ptx::tma_prefetch_map(&args.weight_map);
    for (const CUtensorMap& map : args.token_maps) ptx::tma_prefetch_map(&map);
  }
  __syncthreads();  // the barriers exist
  // 640 threads have 96 registers each; 4 x 128 x 112 + 128 x 32 are no more.
  constexpr int kProducerRegisters = 32;
  constexpr int kConsumerRegisters = 112;
  // The same in all lanes, as the compiler should know (gemm_block).
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp >= FewShape::kWarps) {
    ptx::setmaxnreg_decrease<kProducerRegisters>();
    if (warp == FewShape::kWarps) produce_few(ring, args);
  } else {
    ptx::setmaxnreg_increase<kConsumerRegisters>();
    consume_few<kOutput>(ring, args, warp);
  }
}

}  // namespace gptoss::cuda
