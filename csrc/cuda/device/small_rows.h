// Rows of activations of the small regime: into shared memory in fragment order, and the norm's
// factor of each.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/mxfp4.h"
#include "cuda/device/reduce.h"
#include "cuda/device/small_product.h"
#include "cuda/layout.h"

namespace gptoss::cuda {

// A block takes so many rows at a time: two tiles of tokens. More rows are taken in groups.
constexpr int kGroupRows = 16;
// Columns (token and unit) whose warps' shares wait in shared memory to be summed together.
constexpr int kShareColumns = kGroupRows;

// Rows row_of(0) ... row_of(num_rows - 1) of x [..][columns] to `activations`
// [num_rows][activation_row_bytes(num_pairs)], times 2^kExponent; columns past the end are 0.
template <int kExponent, class RowOf>
__device__ __forceinline__ void stage_rows(std::uint8_t* activations, const __nv_bfloat16* x,
                                           int columns, int num_pairs, int num_rows,
                                           const RowOf& row_of) {
  const std::uint32_t row_bytes = activation_row_bytes(num_pairs);
  const int quarters = num_pairs * 4;
  for (int row = 0; row < num_rows; ++row) {
    const auto* from = reinterpret_cast<const std::uint32_t*>(
        x + static_cast<std::int64_t>(row_of(row)) * columns);
    auto* to = reinterpret_cast<uint4*>(activations + static_cast<std::uint32_t>(row) * row_bytes);
    for (int i = static_cast<int>(threadIdx.x); i < quarters; i += static_cast<int>(blockDim.x)) {
      uint4 values{0, 0, 0, 0};
      if (i / 4 * kPairColumns < columns) values = gather_fragment(from, i);
      if constexpr (kExponent != 0) {
        constexpr std::uint32_t kFactor = power_of_two_bf16x2(kExponent);
        values = {multiply_bf16x2(values.x, kFactor), multiply_bf16x2(values.y, kFactor),
                  multiply_bf16x2(values.z, kFactor), multiply_bf16x2(values.w, kFactor)};
      }
      to[i] = values;
    }
  }
}

// 1 / sqrt(mean of squares + eps) of a row, by a whole warp, from its tiles' sums.
__device__ __forceinline__ float norm_factor(const float* square_sums, int hidden, float eps) {
  const int tiles = hidden / kTileRows;
  float sum = 0.0f;
  for (int tile = static_cast<int>(threadIdx.x % kWarp); tile < tiles; tile += kWarp) {
    sum += __ldcg(square_sums + tile);
  }
  return rsqrtf(warp_sum(sum) / static_cast<float>(hidden) + eps);
}

// factors[i] = norm_factor of row row_of(i); the warps of a block share the rows.
template <class RowOf>
__device__ __forceinline__ void norm_factors(float* factors, const float* square_sums, int hidden,
                                             float eps, int num_rows, const RowOf& row_of) {
  const int tiles = hidden / kTileRows;
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < num_rows;
       row += static_cast<int>(blockDim.x) / kWarp) {
    const float factor =
        norm_factor(square_sums + static_cast<std::int64_t>(row_of(row)) * tiles, hidden, eps);
    if (threadIdx.x % kWarp == 0) factors[row] = factor;
  }
}

__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

}  // namespace gptoss::cuda
