// A model in device memory, as the kernels read it. Nothing here owns memory: device_weights.h
// does.
#pragma once

#include <cuda_bf16.h>

#include <vector>

#include "cuda/layout.h"
#include "model/model_config.h"

namespace gptoss::cuda {

struct DeviceLayer {
  const __nv_bfloat16* attn_norm = nullptr;  // [hidden]
  DenseTiles qkv;                            // q, k, v rows, each a multiple of 64, RowOrder::kRope
  const __nv_bfloat16* qkv_bias = nullptr;   // [rows of qkv], in the order of its rows
  const __nv_bfloat16* sinks = nullptr;      // [num_heads]
  DenseTiles out;                            // [hidden][num_heads * 64]
  const __nv_bfloat16* out_bias = nullptr;   // [hidden]
  const __nv_bfloat16* mlp_norm = nullptr;   // [hidden]
  DenseTiles router;                         // [num_experts][hidden]
  // The same matrix for products a few channels at a time: [hidden / 16][num_experts][16].
  const __nv_bfloat16* router_by_channel = nullptr;
  const __nv_bfloat16* router_bias = nullptr;   // [num_experts]
  MxTiles gate_up;                              // rows 2 * intermediate, RowOrder::kSwiglu
  const __nv_bfloat16* gate_up_bias = nullptr;  // [num_experts][rows], in the order of the rows
  MxTiles down;                                 // rows hidden
  const __nv_bfloat16* down_bias = nullptr;     // [num_experts][hidden]
};

struct DeviceModel {
  ModelConfig config;
  std::vector<DeviceLayer> layers;
  const __nv_bfloat16* embedding = nullptr;   // [vocab][hidden]
  const __nv_bfloat16* final_norm = nullptr;  // [hidden]
  DenseTiles unembedding;                     // [vocab][hidden]
  // [max_context][64]: 32 cosines, then 32 sines of the rotary angles, both times the
  // concentration.
  const float* rope_table = nullptr;
};

}  // namespace gptoss::cuda
