// The product out^T = W * x^T of linear_bf16 and linear_mxfp4 on any device from 8.0 on, by
// mma.sync: 128 weight rows by 128 tokens a block, eight warps of 32 x 64, stages of 64 columns
// brought to shared memory by cp.async (weights as they lie; 16-byte unit u of token row r at
// u ^ r % 8, so that ldmatrix finds eight rows in eight different banks).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/gemm.h"
#include "cuda/device/mxfp4_bf16.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace gptoss::cuda {

struct MmaGemmArgs {
  GemmArgs gemm;
  const std::uint8_t* weights;
  std::int64_t weight_k;   // k tiles (bf16) or records (MXFP4) of a row tile
  const __nv_bfloat16* x;  // [tokens][cols]
  std::int32_t cols;
  std::int32_t num_tokens;  // rows of x
};

template <WeightFormat kFormat>
struct MmaShape {
  static constexpr int kThreads = 256;
  static constexpr int kRowTiles = 8;
  static constexpr int kMaxTokens = 128;
  static constexpr int kWarpTokens = 64;
  static constexpr int kWarpTiles = 2;
  static constexpr int kStages = 3;
  static constexpr int kWeightTileBytes =
      kFormat == WeightFormat::kBf16 ? kStageSteps * kDenseTileBytes : kMxRecordBytes;
  static constexpr int kWeightBytes = kRowTiles * kWeightTileBytes;
  static constexpr int kTokenBytes = kMaxTokens * kTokenRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static constexpr int kSmemBytes = kStages * kStageBytes;
  static_assert(kSmemBytes <= 99 * 1024, "the least that a block may have: 8.6, 8.9, 12.0");
};

template <WeightFormat kFormat>
__device__ __forceinline__ void load_stage(const MmaGemmArgs& args, const TokenTile& tokens,
                                           std::int64_t row_tile, std::int32_t valid_tiles,
                                           std::int32_t k, std::uint8_t* stage) {
  using Shape = MmaShape<kFormat>;
  constexpr int kUnits = Shape::kWeightTileBytes / 16;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < Shape::kRowTiles * kUnits; i += Shape::kThreads) {
    const int tile = i / kUnits;
    const int unit = i % kUnits;
    const std::int64_t k_tile = kFormat == WeightFormat::kBf16 ? k * kStageSteps + unit / kWarp : k;
    const bool valid = tile < valid_tiles && k_tile < args.weight_k;
    constexpr int kBytes = kFormat == WeightFormat::kBf16 ? kDenseTileBytes : kMxRecordBytes;
    const int in_tile = kFormat == WeightFormat::kBf16 ? unit % kWarp * 16 : unit * 16;
    const std::uint8_t* from =
        args.weights +
        (valid ? ((row_tile + tile) * args.weight_k + k_tile) * kBytes + in_tile : 0);
    ptx::cp_async_16_zero_fill(stage + i * 16, from, valid ? 16 : 0);
  }
  std::uint8_t* x_stage = stage + Shape::kWeightBytes;
  constexpr int kRowUnits = kTokenRowBytes / 16;
  for (int i = thread; i < Shape::kMaxTokens * kRowUnits; i += Shape::kThreads) {
    const int row = i / kRowUnits;
    const int unit = i % kRowUnits;
    const std::int32_t col = k * kStageCols + unit * 8;
    const bool valid = row < tokens.count && col < args.cols;
    const __nv_bfloat16* from =
        args.x + (valid ? static_cast<std::int64_t>(tokens.begin + row) * args.cols + col : 0);
    ptx::cp_async_16_zero_fill(x_stage + row * kTokenRowBytes + (unit ^ (row % 8)) * 16, from,
                               valid ? 16 : 0);
  }
}

template <WeightFormat kFormat>
__device__ __forceinline__ void multiply_stage(const std::uint8_t* stage, int warp_rows,
                                               int warp_tokens, float (&d)[2][32]) {
  using Shape = MmaShape<kFormat>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::uint32_t a[kStageSteps][Shape::kWarpTiles][4];
#pragma unroll
  for (int tile = 0; tile < Shape::kWarpTiles; ++tile) {
    const std::uint8_t* record =
        stage + (warp_rows * Shape::kWarpTiles + tile) * Shape::kWeightTileBytes;
    if constexpr (kFormat == WeightFormat::kBf16) {
#pragma unroll
      for (int step = 0; step < kStageSteps; ++step) {
        const uint4 v =
            *reinterpret_cast<const uint4*>(record + step * kDenseTileBytes + lane * 16);
        a[step][tile][0] = v.x;
        a[step][tile][1] = v.y;
        a[step][tile][2] = v.z;
        a[step][tile][3] = v.w;
      }
    } else {
      const uint4 codes = *reinterpret_cast<const uint4*>(record + lane * 16);
      const std::uint32_t scales =
          *reinterpret_cast<const std::uint32_t*>(record + kMxCodeBytes + lane / 4 * 4);
      std::uint32_t steps[kStageSteps][4];
      decode_mxfp4(codes, scales, steps);
#pragma unroll
      for (int i = 0; i < 16; ++i) a[i / 4][tile][i % 4] = steps[i / 4][i % 4];
    }
  }
  const std::uint8_t* x = stage + Shape::kWeightBytes;
  const int matrix = lane / 8;  // tokens 0-7 and 8-15, low and high half of the step's columns
  const int token = warp_tokens * Shape::kWarpTokens + matrix / 2 * 8 + lane % 8;
#pragma unroll
  for (int step = 0; step < kStageSteps; ++step) {
    const int unit = step * 2 + matrix % 2;
#pragma unroll
    for (int pair = 0; pair < Shape::kWarpTokens / 16; ++pair) {
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, x + (token + pair * 16) * kTokenRowBytes + (unit ^ (lane % 8)) * 16);
#pragma unroll
      for (int tile = 0; tile < Shape::kWarpTiles; ++tile) {
        auto* sums = reinterpret_cast<float (*)[4]>(&d[tile][0]);
        ptx::mma_m16n8k16(sums[2 * pair], a[step][tile], b[0], b[1]);
        ptx::mma_m16n8k16(sums[2 * pair + 1], a[step][tile], b[2], b[3]);
      }
    }
  }
}

template <WeightFormat kFormat, TileOutput kOutput>
__device__ __forceinline__ void mma_gemm_block(const MmaGemmArgs& args) {
  using Shape = MmaShape<kFormat>;
  extern __shared__ __align__(128) std::uint8_t smem[];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_rows = warp / 2;
  const int warp_tokens = warp % 2;
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int32_t num_tiles = args.gemm.tiles.count() * args.gemm.row_blocks;
  for (std::int32_t index = blockIdx.x; index < num_tiles; index += gridDim.x) {
    const TokenTile tokens = args.gemm.tiles.at(index / args.gemm.row_blocks);
    const std::int32_t first_tile = index % args.gemm.row_blocks * Shape::kRowTiles;
    const std::int64_t row_tile =
        static_cast<std::int64_t>(tokens.expert) * args.gemm.row_tiles + first_tile;
    const std::int32_t valid_tiles = min(Shape::kRowTiles, args.gemm.row_tiles - first_tile);
    const auto load = [&](std::int32_t k) {
      if (k < args.gemm.num_stages) {
        load_stage<kFormat>(args, tokens, row_tile, valid_tiles, k,
                            smem + k % Shape::kStages * Shape::kStageBytes);
      }
      ptx::cp_async_commit();
    };
    float d[Shape::kWarpTiles][32] = {};
    for (int k = 0; k < Shape::kStages - 1; ++k) load(k);
    for (std::int32_t k = 0; k < args.gemm.num_stages; ++k) {
      ptx::cp_async_wait<Shape::kStages - 2>();
      __syncthreads();  // stage k is there for all; all are done with the one before
      load(k + Shape::kStages - 1);
      multiply_stage<kFormat>(smem + k % Shape::kStages * Shape::kStageBytes, warp_rows,
                              warp_tokens, d);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // the stages are free for the next tile
    const std::int32_t skipped = warp_tokens * Shape::kWarpTokens;
#pragma unroll
    for (int tile = 0; tile < Shape::kWarpTiles; ++tile) {
      const std::int32_t out_tile = first_tile + warp_rows * Shape::kWarpTiles + tile;
      write_tile<kOutput, Shape::kWarpTokens / 8>(
          args.gemm.output, load_bias(args.gemm.output, tokens.expert, out_tile), out_tile,
          tokens.begin + skipped, tokens.count - skipped, d[tile]);
    }
  }
}

}  // namespace gptoss::cuda
