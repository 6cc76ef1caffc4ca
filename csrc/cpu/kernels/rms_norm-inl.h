// rms_norm: x / sqrt(mean(x^2) + eps) * scale, float32 [num_tokens][hidden], scale bf16 [hidden].
// Moves 12 bytes an element, the second read of x from cache; out may be x.
//
// Squares are summed in four vectors, the vector of element i being i / kLanes modulo 4. Square
// root and reciprocal are exact (no estimate instructions).
#pragma once

#include "backend/op_args.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

GPTOSS_INLINE float sum_of_squares(const float* x, std::int64_t count) {
  F32 sum[4] = {zero(), zero(), zero(), zero()};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const F32 v = load(x + i + j * kLanes);
      sum[j] = fma(v, v, sum[j]);
    }
  }
  for (int j = 0; j < 4 && i < count; ++j, i += kLanes) {
    const F32 v = load_partial(x + i, count - i < kLanes ? count - i : kLanes);
    sum[j] = fma(v, v, sum[j]);
  }
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

void rms_norm(const RmsNormArgs& args, Range tokens) {
  const std::int64_t hidden = args.x.cols;
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const float* x = args.x.row(token);
    float* out = args.out.row(token);
    const float mean = sum_of_squares(x, hidden) / static_cast<float>(hidden);
    const F32 inverse = set(1.0f / __builtin_sqrtf(mean + args.eps));
    std::int64_t i = 0;
    for (; i + kLanes <= hidden; i += kLanes) {
      store(out + i, load(x + i) * inverse * load(args.scale + i));
    }
    if (i < hidden) {
      const std::int64_t left = hidden - i;
      store_partial(out + i,
                    load_partial(x + i, left) * inverse * load_partial(args.scale + i, left), left);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
