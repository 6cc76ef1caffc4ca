// Copies from global to shared memory that run beside the arithmetic. cp.async is per thread, 8.0
// and later; cp.async.bulk is one instruction a block of bytes, 9.0 and later.
#pragma once

#include <cstdint>

namespace gptoss::cuda::ptx {

// 16 bytes, both addresses aligned to 16, past L1.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// The first `bytes` (0 ... 16) from global memory and zeros after them; with 0 nothing is read.
__device__ __forceinline__ void cp_async_16_zero_fill(void* shared, const void* global,
                                                      std::uint32_t bytes) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Asks for the 128 bytes around an address to be brought into L2.
__device__ __forceinline__ void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Waits until at most `kPending` of this thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The two below do not exist before 9.0: code that calls them there is never run.

// `bytes` (a multiple of 16, both addresses aligned to 16); arrives on the block's mbarrier with
// that count when they have landed.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, std::uint32_t bytes,
                                          std::uint64_t* mbarrier) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const auto barrier = static_cast<std::uint32_t>(__cvta_generic_to_shared(mbarrier));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(address),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
#endif
}

// The same by addresses in the shared window (mbarrier.h).
__device__ __forceinline__ void bulk_copy(std::uint32_t shared, const void* global,
                                          std::uint32_t bytes, std::uint32_t mbarrier) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(mbarrier)
      : "memory");
#endif
}

// Asks for `bytes` (a multiple of 16) to be brought into L2.
__device__ __forceinline__ void bulk_prefetch_l2(const void* global, std::uint32_t bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#endif
}

}  // namespace gptoss::cuda::ptx
