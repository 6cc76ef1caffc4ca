// Which tiles the tensor-core products take: pure functions of sizes, so that the choice can be
// read, tested without a GPU, and is the same every time. A tile's shape never changes the result,
// the number of splits does, by rounding.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace gptoss::cuda {

// wgmma and TMA: code for 9.0a runs on 9.0 and on nothing else.
constexpr bool has_wgmma(const DeviceInfo& device) {
  return device.compute_capability == 90;
}

struct DenseTiling {
  std::int32_t warpgroups;   // 64 rows each
  std::int32_t tile_tokens;  // one warpgroup: 16, 32, 64 or 128; two: 128 to 256, multiples of 32
  std::int32_t splits;       // 2: two blocks share a tile, each with half of the columns
};

// For linear_bf16_sm90.
DenseTiling dense_tiling(std::int64_t rows, std::int32_t num_tokens, const DeviceInfo& device);

// Most tokens of an expert's tile, when num_slots rows go to num_experts experts.
std::int32_t expert_tile_tokens(std::int32_t num_slots, std::int32_t num_experts,
                                const DeviceInfo& device);
constexpr std::int32_t kLeastTileTokens = 64;  // of what expert_tile_tokens gives

}  // namespace gptoss::cuda
