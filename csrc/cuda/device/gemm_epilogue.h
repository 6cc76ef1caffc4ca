// What happens to a tile of a product between the accumulators and memory, the same for every
// tensor-core kernel: a warp holds 16 weight rows by 8 kEights tokens as mma fragments, d[4 j + i]
// of lane (g, q) being row g (i < 2) or g + 8 of the tile, token 8 j + 2 q + i % 2.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/layout.h"
#include "cuda/product.h"
#include "cuda/ptx/movmatrix.h"

namespace gptoss::cuda {

struct TileOutputArgs {
  void* out;                  // [tokens][out_stride]
  std::int64_t out_stride;    // in elements
  const __nv_bfloat16* bias;  // [experts][rows] or null
  std::int32_t rows;          // of one expert's matrix
  float swiglu_limit;
  float swiglu_alpha;
};

// NaN stays NaN; a gate far below zero gives -0.
__device__ __forceinline__ float swiglu(float gate, float up, float limit, float alpha) {
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return __fdividef(gate, 1.0f + __expf(-alpha * gate)) * (up + 1.0f);
}

// The biases of this lane's rows of a tile, g and g + 8: asked for well before they are added,
// and rounded up from bf16 only then, or that would wait for them.
struct BiasPair {
  __nv_bfloat16 low = __nv_bfloat16(0.0f);
  __nv_bfloat16 high = __nv_bfloat16(0.0f);
};
__device__ __forceinline__ BiasPair load_bias(const TileOutputArgs& args, std::int32_t expert,
                                              std::int32_t row_tile) {
  BiasPair bias;
  if (args.bias == nullptr) return bias;
  const std::int32_t row = row_tile * kTileRows + static_cast<int>(threadIdx.x) % kWarp / 4;
  const __nv_bfloat16* b = args.bias + static_cast<std::int64_t>(expert) * args.rows + row;
  if (row < args.rows) bias.low = b[0];
  if (row + 8 < args.rows) bias.high = b[8];
  return bias;
}

template <TileOutput kOutput, int kEights>
__device__ __forceinline__ void write_tile(const TileOutputArgs& args, BiasPair biases,
                                           std::int32_t row_tile, std::int32_t first_token,
                                           std::int32_t num_tokens, const float (&d)[4 * kEights]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int q = lane % 4;
  const std::int32_t row = row_tile * kTileRows + g;
  const bool has_row[2] = {row < args.rows, row + 8 < args.rows};
  const float bias[2] = {__bfloat162float(biases.low), __bfloat162float(biases.high)};
  if constexpr (kOutput == TileOutput::kSwiglu) {
    // Transposed, a lane has two neighbouring outputs of one token.
    auto* out = static_cast<__nv_bfloat16*>(args.out) + (first_token + g) * args.out_stride +
                row_tile * (kTileRows / 2) + 2 * q;
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      if (8 * j >= num_tokens) break;
      const __nv_bfloat162 pair = __floats2bfloat162_rn(
          swiglu(d[4 * j] + bias[0], d[4 * j + 2] + bias[1], args.swiglu_limit, args.swiglu_alpha),
          swiglu(d[4 * j + 1] + bias[0], d[4 * j + 3] + bias[1], args.swiglu_limit,
                 args.swiglu_alpha));
      const std::uint32_t turned =
          ptx::movmatrix_transpose(reinterpret_cast<const std::uint32_t&>(pair));
      if (8 * j + g < num_tokens && row_tile * kTileRows < args.rows) {
        *reinterpret_cast<std::uint32_t*>(out + 8 * j * args.out_stride) = turned;
      }
    }
  } else {
    float* out = static_cast<float*>(args.out) + (first_token + 2 * q) * args.out_stride + row;
    // What is added to is read well ahead: one load at a time would cost its latency each.
    constexpr int kAhead = kEights < 8 ? kEights : 8;
    float old[kOutput == TileOutput::kAdd ? kAhead : 1][4] = {};
#pragma unroll
    for (int first = 0; first < kEights; first += kAhead) {
      if (8 * first >= num_tokens) break;
      const auto each = [&](auto&& visit) {
#pragma unroll
        for (int j = 0; j < kAhead && first + j < kEights; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int token = 8 * (first + j) + i % 2;
            if (token + 2 * q < num_tokens && has_row[i / 2]) {
              visit(j, i, out[token * args.out_stride + i / 2 * 8]);
            }
          }
        }
      };
      if constexpr (kOutput == TileOutput::kAdd) {
        each([&](int j, int i, const float& place) { old[j][i] = place; });
      }
      each([&](int j, int i, float& place) {
        const float value = d[4 * (first + j) + i] + bias[i / 2];
        place = kOutput == TileOutput::kAdd ? old[j][i] + value : value;
      });
    }
  }
}

}  // namespace gptoss::cuda
