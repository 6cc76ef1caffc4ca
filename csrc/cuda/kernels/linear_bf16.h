// Dense products of the tensor-core regime: out^T = weight * x^T, x bf16, accumulation float32
// along columns in one order, whatever the number of tokens.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/product.h"

namespace gptoss::cuda {

struct DenseProduct {
  DenseTiles weight;
  const __nv_bfloat16* bias;  // [weight.rows] or null
  const __nv_bfloat16* x;     // [num_tokens][weight.cols], 16-byte aligned, cols a multiple of 8
  std::int32_t num_tokens;
  TileOutput output;  // kStore or kAdd
  float* out;         // [num_tokens][out_stride]
  std::int64_t out_stride;
};

void linear_bf16(const DenseProduct& product, const DeviceInfo& device, cudaStream_t stream);

// With wgmma and TMA; linear_bf16 chooses it where it can.
bool supports_linear_bf16_sm90(const DenseProduct& product, const DeviceInfo& device);
void linear_bf16_sm90(const DenseProduct& product, const DeviceInfo& device, cudaStream_t stream);

}  // namespace gptoss::cuda
