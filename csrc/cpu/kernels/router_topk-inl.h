// router_topk: the k largest of each token's logits float32 [num_tokens][num_experts], largest
// first, ties to the lower index, and the softmax over those k. NaN ranks above every number, so a
// NaN logit makes all of its token's weights NaN while the expert ids stay valid.
#pragma once

#include "backend/op_args.h"
#include "cpu/simd/exp.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

GPTOSS_INLINE bool ranks_above(float a, float b) {
  return a > b || (a != a && b == b);
}

// Insertion into a sorted list: at k = 4 most experts cost one comparison.
GPTOSS_INLINE void choose_experts(const float* logits, std::int64_t num_experts, std::int64_t k,
                                  std::int32_t* chosen) {
  std::int64_t count = 0;
  for (std::int64_t expert = 0; expert < num_experts; ++expert) {
    const float logit = logits[expert];
    if (count == k && !ranks_above(logit, logits[chosen[k - 1]])) continue;
    std::int64_t place = count < k ? count++ : k - 1;
    for (; place > 0 && ranks_above(logit, logits[chosen[place - 1]]); --place) {
      chosen[place] = chosen[place - 1];
    }
    chosen[place] = static_cast<std::int32_t>(expert);
  }
}

void router_topk(const RouterTopkArgs& args, Range tokens) {
  const std::int64_t k = args.experts_per_token;
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const float* logits = args.logits.row(token);
    std::int32_t* chosen = args.expert_ids + token * k;
    float* weights = args.weights + token * k;
    if (args.forced != nullptr) {
      for (std::int64_t i = 0; i < k; ++i) chosen[i] = args.forced[token * k + i];
    } else {
      choose_experts(logits, args.logits.cols, k, chosen);
    }
    float top = logits[chosen[0]];
    for (std::int64_t i = 1; i < k; ++i) {
      if (logits[chosen[i]] > top) top = logits[chosen[i]];
    }
    float sum = 0.0f;
    for (std::int64_t i = 0; i < k; ++i) {
      weights[i] = exp(logits[chosen[i]] - top);
      sum += weights[i];
    }
    for (std::int64_t i = 0; i < k; ++i) weights[i] /= sum;
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
