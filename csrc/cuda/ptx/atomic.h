// Counting with an order, at device scope.
#pragma once

namespace gptoss::cuda::ptx {

// Adds and returns the old value. What this thread has seen or written is seen by whoever counts
// after it, and what those before had, by this thread.
__device__ __forceinline__ unsigned atomic_add_acq_rel(unsigned* counter, unsigned value) {
  unsigned old;
  asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(counter), "r"(value)
               : "memory");
  return old;
}

}  // namespace gptoss::cuda::ptx
