// Expert products of the tensor-core regime: each tile of tokens with its expert's MXFP4 matrix,
// decoded to exact bf16 on the way to the tensor cores; x bf16, accumulation float32 along columns
// in one order, whatever the number of tokens.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/product.h"

namespace gptoss::cuda {

struct ExpertProduct {
  MxTiles weight;
  const __nv_bfloat16* bias;  // [num_experts][weight.rows] or null
  const __nv_bfloat16* x;     // [num_slots][weight.cols], sorted by expert; 16-byte aligned
  std::int32_t num_slots;
  const TokenTile* tiles;         // sort_by_expert, with expert_tile_tokens(num_slots, ...)
  const std::int32_t* num_tiles;  // in device memory
  std::int32_t tile_tokens;       // no tile has more
  TileOutput output;              // kStore: float32 [num_slots][out_stride]; kSwiglu: bf16
  void* out;
  std::int64_t out_stride;
  float swiglu_limit;
  float swiglu_alpha;
  // The kernel before this one writes neither tiles nor num_tiles, and began after who did.
  bool tiles_ready = false;
  // Zero, in device memory, for the blocks to count the tiles they have taken; null: each takes as
  // many.
  std::int32_t* num_taken = nullptr;
};

void linear_mxfp4(const ExpertProduct& product, const DeviceInfo& device, cudaStream_t stream);

// With wgmma and TMA; linear_mxfp4 chooses it where it can.
bool supports_linear_mxfp4_sm90(const ExpertProduct& product, const DeviceInfo& device);
void linear_mxfp4_sm90(const ExpertProduct& product, const DeviceInfo& device, cudaStream_t stream);

}  // namespace gptoss::cuda
