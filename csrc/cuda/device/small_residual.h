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

// residual[row][channel] += sum; writes xs and the tile's sum of squares; returns xs. The 16 lanes
// of a tile call it together.
__device__ __forceinline__ float add_to_residual(const SmallBuffers& buffers, float* square_sums,
                                                 const __nv_bfloat16* next_norm, int hidden,
                                                 int row, int channel, float sum, bool there) {
  const std::int64_t at = static_cast<std::int64_t>(row) * hidden + channel;
  float value = 0.0f;
  __nv_bfloat16 x = __float2bfloat16(0.0f);
  if (there) {
    value = __ldcg(buffers.residual + at) + sum;
    x = __float2bfloat16(value * to_float(next_norm[channel]));
    buffers.residual[at] = value;
    buffers.xs[at] = x;
  }
  const float squares = warp_sum<kTileRows>(value * value);
  if (there && channel % kTileRows == 0) {
    square_sums[static_cast<std::int64_t>(row) * (hidden / kTileRows) + channel / kTileRows] =
        squares;
  }
  return to_float(x);
}

}  // namespace gptoss::cuda
