// Blocks of a cluster, compute capability 9.0 and later: a barrier, and each other's shared memory.
#pragma once

namespace gptoss::cuda::ptx {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// What this thread wrote is seen by every thread of the cluster that has waited.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

// Until every thread of the cluster that has not ended has arrived.
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Where another block of the cluster has the same shared variable.
template <typename T>
__device__ __forceinline__ const T* map_to_rank(const T* shared, unsigned rank) {
  const T* mapped;
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(shared), "r"(rank));
  return mapped;
}
#endif

}  // namespace gptoss::cuda::ptx
