// A row's experts by one warp: the k largest logits and their softmax.
#pragma once

#include <cstdint>

#include "cuda/device/reduce.h"

namespace gptoss::cuda {

// Ascending as the numbers ascend, NaN last, -0 as 0; no number has rank 0.
__device__ __forceinline__ std::uint32_t rank_of(float value) {
  if (value != value) return 0xffffffffu;
  const std::uint32_t bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The best expert after (rank, expert) in the order by falling rank, then rising number.
__device__ __forceinline__ std::int32_t next_expert(const float* logits, std::int32_t num_experts,
                                                    std::uint32_t& rank, std::int32_t expert) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  std::uint32_t best = 0;
  std::int32_t best_expert = -1;
  for (std::int32_t i = lane; i < num_experts; i += 32) {
    const std::uint32_t mine = rank_of(logits[i]);
    const bool after = mine < rank || (mine == rank && i > expert);
    if (after && mine > best) {
      best = mine;
      best_expert = i;
    }
  }
  rank = __reduce_max_sync(kAllLanes, best);
  return static_cast<std::int32_t>(__reduce_min_sync(
      kAllLanes, best == rank ? static_cast<std::uint32_t>(best_expert) : 0xffffffffu));
}

// logits [num_experts] in global or shared memory; `forced`: [k] or null.
__device__ __forceinline__ void choose_experts(const float* logits, std::int32_t num_experts,
                                               std::int32_t k, const std::int32_t* forced,
                                               std::int32_t* ids, float* weights) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  std::uint32_t rank = 0xffffffffu;
  std::int32_t expert = -1;
  float top = 0.0f;
  float mine = 0.0f;  // lane i: the logit of choice i
  for (std::int32_t choice = 0; choice < k; ++choice) {
    expert = forced != nullptr ? forced[choice] : next_expert(logits, num_experts, rank, expert);
    if (lane == 0) ids[choice] = expert;
    const float logit = logits[expert];
    if (lane == choice) mine = logit;
    top = choice == 0 || logit > top ? logit : top;
  }
  __syncwarp();  // the ids are written
  mine = expf(mine - top);
  // Choices past the warp's width are looked up again.
  const auto power = [&](std::int32_t choice) {
    return choice < 32 ? __shfl_sync(kAllLanes, mine, choice) : expf(logits[ids[choice]] - top);
  };
  float sum = 0.0f;
  for (std::int32_t choice = 0; choice < k; ++choice) sum += power(choice);
  for (std::int32_t choice = 0; choice < k; ++choice) {
    const float weight = power(choice) / sum;
    if (lane == choice % 32) weights[choice] = weight;
  }
}

}  // namespace gptoss::cuda
