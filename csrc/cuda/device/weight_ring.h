// A warp's ring of weights in shared memory, filled from global memory ahead of use. The warp that
// reads a stage is the one that asks for it again, so that no barrier between warps is needed and
// weights, which no kernel writes, can be under way before the kernels before this one have ended.
#pragma once

#include <cstdint>

#include "cuda/layout.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/mbarrier.h"

namespace gptoss::cuda {

enum class RingCopy {
  kAsync,  // cp.async, 16 bytes a lane
  kBulk,   // cp.async.bulk, one instruction a stage; sm_90
};

template <RingCopy kCopy, int kStages>
class WeightRing {
 public:
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr bool kIsBulk = false;
#else
  static constexpr bool kIsBulk = kCopy == RingCopy::kBulk;
#endif
  // Shared memory of a warp: stages, and an 8-byte barrier for each.
  static constexpr std::uint32_t bytes(std::uint32_t stage_bytes) {
    return kStages * (stage_bytes + 8);
  }

  // `stages` aligned to 16; all lanes of the warp.
  __device__ WeightRing(std::uint8_t* stages, std::uint32_t stage_bytes, std::uint64_t* barriers)
      : stages_(stages),
        barriers_(barriers),
        stage_bytes_(stage_bytes),
        lane_(threadIdx.x % kWarp) {
    if constexpr (kIsBulk) {
      if (lane_ < kStages) ptx::mbarrier_init(ptx::shared_address(barriers_ + lane_), 1);
      ptx::fence_mbarrier_init();
      __syncwarp();
    }
  }

  // Asks for the next stage; bytes a multiple of 16, 0 for none (past the end).
  __device__ void fill(const std::uint8_t* source, std::uint32_t num_bytes) {
    std::uint8_t* stage = stages_ + fill_ * stage_bytes_;
    if constexpr (kIsBulk) {
      if (lane_ == 0 && num_bytes != 0) {
        ptx::mbarrier_arrive_expect_bytes(ptx::shared_address(barriers_ + fill_), num_bytes);
        ptx::bulk_copy(stage, source, num_bytes, barriers_ + fill_);
      }
    } else {
      for (std::uint32_t at = lane_ * 16; at < num_bytes; at += kWarp * 16) {
        ptx::cp_async_16(stage + at, source + at);
      }
      ptx::cp_async_commit();
    }
    if (++fill_ == kStages) fill_ = 0;
  }

  // The oldest stage not yet read, once it has landed.
  __device__ const std::uint8_t* wait() {
    if constexpr (kIsBulk) {
      ptx::mbarrier_wait(ptx::shared_address(barriers_ + read_), parity_);
    } else {
      ptx::cp_async_wait<kStages - 1>();
      __syncwarp();  // other lanes' copies
    }
    const std::uint8_t* stage = stages_ + read_ * stage_bytes_;
    if (++read_ == kStages) {
      read_ = 0;
      parity_ ^= 1;
    }
    return stage;
  }

  // Every lane has read the stage that wait() gave: it may be filled again.
  __device__ void release() { __syncwarp(); }

 private:
  std::uint8_t* stages_;
  std::uint64_t* barriers_;
  std::uint32_t stage_bytes_;
  std::uint32_t lane_;
  std::uint32_t fill_ = 0;
  std::uint32_t read_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace gptoss::cuda
