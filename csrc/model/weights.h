// Views of a checkpoint's tensors, in place. Nothing here owns memory: the mapped files outlive it.
#pragma once

#include <vector>

#include "base/dtype.h"
#include "base/view.h"
#include "model/mxfp4.h"

namespace gptoss {

struct LayerWeights {
  const bf16* attn_norm = nullptr;       // [hidden]
  MatrixView<const bf16> q_weight;       // [num_heads * 64][hidden], rows ordered by head
  MatrixView<const bf16> k_weight;       // [num_kv_heads * 64][hidden]
  MatrixView<const bf16> v_weight;       // [num_kv_heads * 64][hidden]
  const bf16* q_bias = nullptr;          // [num_heads * 64]
  const bf16* k_bias = nullptr;          // [num_kv_heads * 64]
  const bf16* v_bias = nullptr;          // [num_kv_heads * 64]
  const bf16* sinks = nullptr;           // [num_heads]
  MatrixView<const bf16> out_weight;     // [hidden][num_heads * 64]
  const bf16* out_bias = nullptr;        // [hidden]
  const bf16* mlp_norm = nullptr;        // [hidden]
  MatrixView<const bf16> router_weight;  // [num_experts][hidden]
  const bf16* router_bias = nullptr;     // [num_experts]
  MxExperts gate_up;                     // rows 2 * intermediate (even gate, odd up), cols hidden
  MxExperts down;                        // rows hidden, cols intermediate
};

struct Weights {
  MatrixView<const bf16> embedding;    // [vocab][hidden]
  std::vector<LayerWeights> layers;    // [num_layers]
  const bf16* final_norm = nullptr;    // [hidden]
  MatrixView<const bf16> unembedding;  // [vocab][hidden]
};

}  // namespace gptoss
