// Which models the kernels of the small regime run, and on which devices.
#include <algorithm>

#include "base/error.h"
#include "cuda/device/expert_stream.h"
#include "cuda/kernels/small_layout.h"

namespace gptoss::cuda {
void require_small_kernels(const ModelConfig& c, const DeviceInfo& device) {
  GPTOSS_REQUIRE(
      InvalidArgument, device.compute_capability >= 80,
      "[load_model] expected a device of compute capability 8.0 or later (cp.async, bf16 "
      "products), got ",
      device.compute_capability / 10, ".", device.compute_capability % 10, "; use device='cpu'");
  GPTOSS_REQUIRE(InvalidArgument, c.num_experts <= kMaxRoutedExperts,
                 "[load_model] expected at most ", kMaxRoutedExperts, " experts on cuda, got ",
                 c.num_experts, "; use device='cpu'");
  GPTOSS_REQUIRE(InvalidArgument, c.experts_per_token <= kMaxExpertsPerToken,
                 "[load_model] expected at most ", kMaxExpertsPerToken,
                 " experts per token on cuda, got ", c.experts_per_token, "; use device='cpu'");
}

std::int32_t small_group_rows(const ModelConfig& c, const DeviceInfo& device) {
  constexpr std::size_t kStatic = 8192;  // routing and lists
  const auto needed = [&](int rows) {
    return kStatic +
           std::max({dense_smem_bytes(rows, c.hidden_size) + squares_bytes(rows, c.hidden_size),
                     dense_smem_bytes(rows, c.q_size()), expert_smem_bytes(rows, c.hidden_size),
                     expert_smem_bytes(rows, c.intermediate_size)});
  };
  // All numbers of rows up to that: stages are fewer where rows are many.
  int rows = 0;
  while (rows < kGroupRows && needed(rows + 1) <= device.smem_per_block) ++rows;
  return rows == kGroupRows ? kSmallRows : rows;
}

}  // namespace gptoss::cuda
