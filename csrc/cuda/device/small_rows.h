// Rows of activations of the small regime: into shared memory, and the norm's factor of each.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/mxfp4.h"
#include "cuda/device/reduce.h"
#include "cuda/device/small_product.h"
#include "cuda/layout.h"
#include "cuda/ptx/async_copy.h"

namespace gptoss::cuda {

// A block takes so many rows at a time: two tiles of tokens. More rows are taken in groups.
constexpr int kGroupRows = 16;

// Rows row_of(0) ... row_of(num_rows - 1) of x [..][columns] to `activations`
// [num_rows][dense_row_bytes(columns)]; `columns` a multiple of 8. Copies are under way until
// copies_landed().
template <class RowOf>
__device__ __forceinline__ void copy_rows(std::uint8_t* activations, const __nv_bfloat16* x,
                                          int columns, int num_rows, const RowOf& row_of) {
  const std::uint32_t row_bytes = dense_row_bytes(columns);
#pragma unroll 1
  for (int row = 0; row < num_rows; ++row) {
    const __nv_bfloat16* from = x + static_cast<std::int64_t>(row_of(row)) * columns;
    std::uint8_t* to = activations + static_cast<std::uint32_t>(row) * row_bytes;
    for (int i = static_cast<int>(threadIdx.x); i < columns / 8;
         i += static_cast<int>(blockDim.x)) {
      ptx::cp_async_16(to + 16 * i, from + 8 * i);
    }
  }
}

// The same for rows that lie in fragment order, [..][num_pairs * 32] with 0 past the columns, to
// [num_rows][activation_row_bytes(num_pairs)], by the block's first kThreads threads.
template <int kThreads, class RowOf>
__device__ __forceinline__ void copy_fragments(std::uint8_t* activations, const __nv_bfloat16* x,
                                               int num_pairs, int num_rows, const RowOf& row_of) {
  const std::uint32_t row_bytes = activation_row_bytes(num_pairs);
  const int quarters = num_pairs * 4;
  for (int row = 0; row < num_rows; ++row) {
    const __nv_bfloat16* from =
        x + static_cast<std::int64_t>(row_of(row)) * num_pairs * kPairColumns;
    std::uint8_t* to = activations + static_cast<std::uint32_t>(row) * row_bytes;
    for (int i = static_cast<int>(threadIdx.x); i < quarters; i += kThreads) {
      ptx::cp_async_16(to + 16 * i, from + 8 * i);
    }
  }
}

// Of this thread; a barrier shows them to the others.
__device__ __forceinline__ void copies_landed() {
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

// The sums of squares of rows row_of(0) ... to shared memory, [num_rows][hidden / 16].
template <class RowOf>
__device__ __forceinline__ void stage_squares(float* to, const float* square_sums, int hidden,
                                              int num_rows, const RowOf& row_of) {
  const int tiles = hidden / kTileRows;
  for (int row = 0; row < num_rows; ++row) {
    const float* from = square_sums + static_cast<std::int64_t>(row_of(row)) * tiles;
    for (int i = static_cast<int>(threadIdx.x); i < tiles; i += static_cast<int>(blockDim.x)) {
      to[row * tiles + i] = __ldcg(from + i);
    }
  }
}

// 1 / sqrt(mean of squares + eps) of a row by a whole warp, `load(tile)` being its tiles' sums.
template <class Load>
__device__ __forceinline__ float norm_factor(int hidden, float eps, const Load& load) {
  const int tiles = hidden / kTileRows;
  float sum = 0.0f;
  constexpr int kAtOnce = 8;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x % kWarp); first < tiles; first += kAtOnce * kWarp) {
    float parts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      parts[i] = first + i * kWarp < tiles ? load(first + i * kWarp) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += parts[i];
  }
  return rsqrtf(warp_sum(sum) / static_cast<float>(hidden) + eps);
}

// factors[row] of rows whose sums are in shared memory; the warps of a block share the rows.
__device__ __forceinline__ void norm_factors(float* factors, const float* squares, int hidden,
                                             float eps, int num_rows) {
  const int tiles = hidden / kTileRows;
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < num_rows;
       row += static_cast<int>(blockDim.x) / kWarp) {
    const float* from = squares + row * tiles;
    const float factor = norm_factor(hidden, eps, [&](int tile) { return from[tile]; });
    if (threadIdx.x % kWarp == 0) factors[row] = factor;
  }
}

__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

}  // namespace gptoss::cuda
