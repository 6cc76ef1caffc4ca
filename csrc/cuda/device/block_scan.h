// Sums over the threads of a block, in the order of the threads.
#pragma once

#include <cstdint>

#include "cuda/layout.h"

namespace gptoss::cuda {

template <int kThreads>
class BlockScan {
 public:
  struct Result {
    std::uint64_t before;  // of the threads before this one
    std::uint64_t total;
  };

  // Every thread of the block comes here.
  __device__ Result operator()(std::uint64_t mine) {
    const int lane = threadIdx.x % kWarp;
    std::uint64_t sum = mine;  // of this lane and those before it
    for (int step = 1; step < kWarp; step *= 2) {
      const std::uint64_t other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    __syncthreads();  // the scan before this one has been read
    if (lane == kWarp - 1) sums_[threadIdx.x / kWarp] = sum;
    __syncthreads();
    Result result{sum - mine, 0};
    for (int warp = 0; warp < kThreads / kWarp; ++warp) {
      if (warp < static_cast<int>(threadIdx.x) / kWarp) result.before += sums_[warp];
      result.total += sums_[warp];
    }
    return result;
  }

 private:
  std::uint64_t sums_[kThreads / kWarp];
};

}  // namespace gptoss::cuda
