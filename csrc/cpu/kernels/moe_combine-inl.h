// moe_combine: out += sum over choices of weight * expert output, float32, in order of choice.
// expert_out [num_tokens * experts_per_token][hidden], out [num_tokens][hidden].
// Moves 4 * (experts_per_token + 2) bytes an output.
#pragma once

#include "backend/op_args.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

void moe_combine(const MoeCombineArgs& args, Range tokens, Range cols) {
  const std::int64_t k = args.experts_per_token;
  const std::int64_t stride = args.expert_out.stride;
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const float* weights = args.weights + token * k;
    const float* expert_out = args.expert_out.row(token * k);
    float* out = args.out.row(token);
    std::int64_t i = cols.begin;
    for (; i + kLanes <= cols.end; i += kLanes) {
      F32 sum = set(weights[0]) * load(expert_out + i);
      for (std::int64_t j = 1; j < k; ++j) {
        sum = fma(set(weights[j]), load(expert_out + j * stride + i), sum);
      }
      store(out + i, load(out + i) + sum);
    }
    if (i < cols.end) {
      const std::int64_t left = cols.end - i;
      F32 sum = set(weights[0]) * load_partial(expert_out + i, left);
      for (std::int64_t j = 1; j < k; ++j) {
        sum = fma(set(weights[j]), load_partial(expert_out + j * stride + i, left), sum);
      }
      store_partial(out + i, load_partial(out + i, left) + sum, left);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
