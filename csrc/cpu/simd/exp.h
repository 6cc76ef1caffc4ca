// exp of every lane: within 1.5 units in the last place down to the subnormals, then zero. exp(0)
// is 1, exp(-inf) is 0, exp(inf) is inf, NaN stays NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 q(r), q of degree 4 fitted to the
// relative error of exp (Lawson's iteration; 0.05 * 2^-24); times 2^n.
#pragma once

#include "cpu/simd/inline.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

GPTOSS_INLINE F32 exp(F32 x) {
  // Beyond these the result is 0 or infinite anyway, and n stays small.
  x = min(set(89.0f), max(set(-104.0f), x));
  // Adding 1.5 * 2^23 rounds to an integer.
  const F32 rounder = set(12582912.0f);
  const F32 n = fma(x, set(0x1.715476p+0f), rounder) - rounder;
  // ln 2 in two parts; the first has 12 bits, so that its product with n is exact.
  F32 r = fnma(n, set(0x1.62ep-1f), x);
  r = fnma(n, set(0x1.0bfbe8p-15f), r);
  F32 q = set(0x1.6a23d0p-10f);
  q = fma(q, r, set(0x1.123a20p-7f));
  q = fma(q, r, set(0x1.5558f2p-5f));
  q = fma(q, r, set(0x1.555492p-3f));
  q = fma(q, r, set(0x1.fffffcp-2f));
  const F32 p = fma(q, r * r, r) + set(1.0f);
  return scale_by_power_of_two(p, n);
}

GPTOSS_INLINE float exp(float x) {
  float lanes[kLanes];
  store(lanes, exp(set(x)));
  return lanes[0];
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
