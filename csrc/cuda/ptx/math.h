// Arithmetic that has an instruction and no intrinsic.
#pragma once

namespace gptoss::cuda::ptx {

// 2^x within 2 units in the last place; results below 2^-126 are 0. -inf gives 0, NaN stays NaN.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace gptoss::cuda::ptx
