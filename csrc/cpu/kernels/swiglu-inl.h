// swiglu: gate_up float32 [rows][2 * cols], gate and up interleaved, to float32 [rows][cols]:
// g = min(gate, limit), u = clamp(up, -limit, limit), out = g / (1 + exp(-alpha g)) * (u + 1).
// Moves 12 bytes an output; NaN in gate or up stays NaN.
#pragma once

#include "backend/op_args.h"
#include "cpu/simd/exp.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

struct SwigluConstants {
  F32 limit;
  F32 minus_limit;
  F32 minus_alpha;
};

// `low` and `high`: kLanes interleaved pairs.
GPTOSS_INLINE F32 swiglu_lanes(const SwigluConstants& constants, F32 low, F32 high) {
  F32 gate, up;
  deinterleave(low, high, gate, up);
  gate = min(constants.limit, gate);
  up = max(constants.minus_limit, min(constants.limit, up));
  // exp overflows to infinity for very negative gates; the quotient is then -0.
  const F32 sigmoid_gate = gate / (set(1.0f) + exp(constants.minus_alpha * gate));
  return sigmoid_gate * (up + set(1.0f));
}

void swiglu(const SwigluArgs& args, Range rows, Range cols) {
  const SwigluConstants constants{set(args.limit), set(-args.limit), set(-args.alpha)};
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = args.gate_up.row(row);
    float* out = args.out.row(row);
    std::int64_t i = cols.begin;
    for (; i + kLanes <= cols.end; i += kLanes) {
      store(out + i, swiglu_lanes(constants, load(x + 2 * i), load(x + 2 * i + kLanes)));
    }
    if (i < cols.end) {
      const std::int64_t left = cols.end - i;
      const std::int64_t in_low = 2 * left < kLanes ? 2 * left : kLanes;
      const F32 low = load_partial(x + 2 * i, in_low);
      const F32 high = load_partial(x + 2 * i + in_low, 2 * left - in_low);
      store_partial(out + i, swiglu_lanes(constants, low, high), left);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
