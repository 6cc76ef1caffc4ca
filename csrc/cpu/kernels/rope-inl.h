// rope: rotates the halves of each head in place, x float32 [num_tokens][num_heads * 64], by
// cos_sin float32 [num_tokens][64]: (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin).
// Moves 8 bytes an element.
#pragma once

#include "backend/op_args.h"
#include "model/model_config.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

void rope(const RopeArgs& args, Range tokens) {
  constexpr std::int64_t kHalf = kHeadDim / 2;
  static_assert(kHalf % kLanes == 0);
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const float* cosines = args.cos_sin.row(token);
    const float* sines = cosines + kHalf;
    for (std::int64_t head = 0; head < args.num_heads; ++head) {
      float* x = args.x.row(token) + head * kHeadDim;
      for (std::int64_t i = 0; i < kHalf; i += kLanes) {
        const F32 c = load(cosines + i);
        const F32 s = load(sines + i);
        const F32 x0 = load(x + i);
        const F32 x1 = load(x + kHalf + i);
        store(x + i, fnma(x1, s, x0 * c));
        store(x + kHalf + i, fma(x0, s, x1 * c));
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
