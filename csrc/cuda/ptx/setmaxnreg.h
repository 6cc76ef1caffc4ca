// Moves registers between warpgroups (sm_90a): every warp of a warpgroup executes it, counts are
// multiples of 8.
#pragma once

namespace gptoss::cuda::ptx {

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace gptoss::cuda::ptx
