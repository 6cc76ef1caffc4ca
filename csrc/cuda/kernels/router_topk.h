// Routing in the tensor-core regime: who goes to which expert, and the order in which the expert
// products take them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/product.h"

namespace gptoss::cuda {

struct TopkArgs {
  const float* logits;         // [num_rows][num_experts]
  const std::int32_t* forced;  // [num_rows][experts_per_token] or null: use these experts
  std::int32_t* expert_ids;    // [num_rows][experts_per_token]
  float* weights;              // [num_rows][experts_per_token]
  std::int32_t num_rows;
  std::int32_t num_experts;
  std::int32_t experts_per_token;
};

// The largest logits of each row, largest first, ties to the lower index, and their softmax. NaN
// ranks above every number: its row's weights are NaN, the ids valid.
void router_topk(const TopkArgs& args, cudaStream_t stream);

// The norm before the experts, the router and the choice in one pass over the residual.
struct RouteArgs {
  const float* residual;       // [num_rows][hidden]
  const __nv_bfloat16* scale;  // [hidden]
  float eps;
  DenseTiles router;           // [num_experts][hidden]
  const __nv_bfloat16* bias;   // [num_experts]
  const std::int32_t* forced;  // as in TopkArgs
  __nv_bfloat16* xs;         // [num_rows][hidden] bf16(rms_norm(residual)), the router's input too
  std::int32_t* expert_ids;  // as in TopkArgs
  float* weights;
  std::int32_t num_rows;
  std::int32_t experts_per_token;
};
void norm_and_route(const RouteArgs& args, const DeviceInfo& device, cudaStream_t stream);

struct ExpertSortArgs {
  const std::int32_t* expert_ids;  // [num_slots], slot = row * experts_per_token + choice
  std::int32_t num_slots;
  std::int32_t num_experts;
  std::int32_t max_tile_tokens;
  std::int32_t* places;     // [num_slots] of each slot in the order by expert, then by slot
  TokenTile* tiles;         // [expert_tiles_bound + 1], an expert's tokens in equal parts
  std::int32_t* num_tiles;  // [1 + kTileCounters]: how many, then zeros
};
// Of tiles that the blocks of a product have taken, one a product of the layer.
constexpr std::int32_t kTileCounters = 2;

// How many tiles there can be.
constexpr std::int64_t expert_tiles_bound(std::int64_t num_slots, std::int64_t num_experts,
                                          std::int64_t max_tile_tokens) {
  return num_slots / max_tile_tokens + (num_experts < num_slots ? num_experts : num_slots);
}

void sort_by_expert(const ExpertSortArgs& args, cudaStream_t stream);

// sorted[places[row * experts_per_token + choice]] = x[row], for every choice.
struct GatherArgs {
  const __nv_bfloat16* x;      // [num_rows][hidden]
  const std::int32_t* places;  // [num_rows][experts_per_token]
  __nv_bfloat16* sorted;       // [num_rows * experts_per_token][hidden]
  std::int32_t num_rows;
  std::int32_t experts_per_token;
  std::int32_t hidden;  // a multiple of 8
};
void gather_by_expert(const GatherArgs& args, cudaStream_t stream);

// One after the other; in one kernel where there are few slots.
void sort_and_gather(const ExpertSortArgs& sort, const GatherArgs& gather, cudaStream_t stream);

}  // namespace gptoss::cuda
