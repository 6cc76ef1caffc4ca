#include "model/moe_plan.h"

#include <algorithm>

namespace gptoss {

void MoePlan::reserve(std::int64_t num_slots, std::int64_t num_experts) {
  offsets.reserve(static_cast<std::size_t>(num_experts) + 1);
  slots.reserve(static_cast<std::size_t>(num_slots));
  tokens.reserve(static_cast<std::size_t>(num_slots));
  active.reserve(static_cast<std::size_t>(num_experts));
}

void MoePlan::build(const std::int32_t* expert_ids, std::int64_t num_tokens,
                    std::int64_t experts_per_token, std::int64_t num_experts) {
  const std::int64_t num_slots = num_tokens * experts_per_token;
  offsets.assign(static_cast<std::size_t>(num_experts) + 1, 0);
  slots.resize(static_cast<std::size_t>(num_slots));
  tokens.resize(static_cast<std::size_t>(num_slots));
  for (std::int64_t slot = 0; slot < num_slots; ++slot) ++offsets[expert_ids[slot] + 1];
  for (std::int64_t e = 0; e < num_experts; ++e) offsets[e + 1] += offsets[e];

  active.clear();
  for (std::int64_t e = 0; e < num_experts; ++e) {
    if (offsets[e + 1] > offsets[e]) active.push_back(static_cast<std::int32_t>(e));
  }
  // The largest first, so that the tail of a shared work list is small pieces.
  std::stable_sort(active.begin(), active.end(), [&](std::int32_t a, std::int32_t b) {
    return offsets[a + 1] - offsets[a] > offsets[b + 1] - offsets[b];
  });

  // offsets[e] runs to its end while filling, then is shifted back by one expert.
  for (std::int64_t slot = 0; slot < num_slots; ++slot) {
    const std::int32_t place = offsets[expert_ids[slot]]++;
    slots[place] = static_cast<std::int32_t>(slot);
    tokens[place] = static_cast<std::int32_t>(slot / experts_per_token);
  }
  for (std::int64_t e = num_experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

}  // namespace gptoss
