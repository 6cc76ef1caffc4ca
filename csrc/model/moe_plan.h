// Which tokens go to which expert: a counting sort of (token, choice) pairs by expert.
#pragma once

#include <cstdint>
#include <vector>

namespace gptoss {

struct MoePlan {
  std::vector<std::int32_t> offsets;  // [num_experts + 1], into the two lists below
  std::vector<std::int32_t> slots;    // token * experts_per_token + choice, ascending an expert
  std::vector<std::int32_t> tokens;   // slot / experts_per_token
  std::vector<std::int32_t> active;   // experts with at least one token, most tokens first

  // So that build() does not allocate up to these sizes.
  void reserve(std::int64_t num_slots, std::int64_t num_experts);
  // expert_ids: [num_tokens][experts_per_token], each in [0, num_experts).
  void build(const std::int32_t* expert_ids, std::int64_t num_tokens,
             std::int64_t experts_per_token, std::int64_t num_experts);
};

}  // namespace gptoss
