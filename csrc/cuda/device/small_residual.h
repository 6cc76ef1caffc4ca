// The end of both halves of a layer: a block's channels of the residual stream, and what the next
// norm needs of them.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/reduce.h"
#include "cuda/device/small_rows.h"
#include "cuda/kernels/small_kernels.h"

namespace gptoss::cuda {

// body(column, channel in the tile, there) for every channel of some columns (a tile's of a row),
// whole warps at a time: 16 neighbouring lanes have a column.
template <class Body>
__device__ __forceinline__ void for_channels(int num_columns, const Body& body) {
  const int num_items = num_columns * kTileRows;
  const int end = (num_items + kWarp - 1) / kWarp * kWarp;
  for (int i = static_cast<int>(threadIdx.x); i < end; i += static_cast<int>(blockDim.x)) {
    const bool there = i < num_items;
    body(there ? i / kTileRows : 0, i % kTileRows, there);
  }
}

// A channel of the new residual: writes it and its tile's sum of squares and returns
// xs = bf16(value * scale), which the caller writes where it is wanted. The 16 lanes of a tile call
// it together.
__device__ __forceinline__ float put_residual(float* residual, float* square_sums, int hidden,
                                              int row, int channel, float value, float scale,
                                              bool there) {
  const float squares = warp_sum<kTileRows>(there ? value * value : 0.0f);
  if (!there) return 0.0f;
  residual[static_cast<std::int64_t>(row) * hidden + channel] = value;
  if (channel % kTileRows == 0) {
    square_sums[static_cast<std::int64_t>(row) * (hidden / kTileRows) + channel / kTileRows] =
        squares;
  }
  return to_float(__float2bfloat16(value * scale));
}

}  // namespace gptoss::cuda
