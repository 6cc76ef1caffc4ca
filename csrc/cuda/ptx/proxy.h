// Ordering between ordinary accesses to shared memory and those of the tensor cores and the copy
// engine (sm_90).
#pragma once

namespace gptoss::cuda::ptx {

// What this thread has written, cp.async included once waited for, is seen by wgmma and bulk
// copies that are ordered after it by a barrier.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace gptoss::cuda::ptx
