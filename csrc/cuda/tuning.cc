#include "cuda/tuning.h"

#include <algorithm>

namespace gptoss::cuda {
namespace {

constexpr std::int64_t pieces(std::int64_t size, std::int64_t piece) {
  return (size + piece - 1) / piece;
}

}  // namespace

DenseTiling dense_tiling(std::int64_t rows, std::int32_t num_tokens, const DeviceInfo& device) {
  // Nanoseconds a stage, measured on one H200 (1.8 GHz) at the sizes of the 20b. One warpgroup
  // waits for its own instructions, up to 128 tokens; two are bound by what they multiply. Adding
  // up what two blocks have takes as long as some stages.
  constexpr std::int64_t kNarrowCost = 265;
  constexpr std::int64_t kSplitCost = kNarrowCost / 2 + 45;
  const auto wide_cost = [](std::int64_t tokens) { return 300 + tokens * 17 / 10; };
  DenseTiling best{1, 16, 1};
  std::int64_t best_cost = -1;
  const auto consider = [&](std::int32_t warpgroups, std::int32_t tile_tokens,
                            std::int64_t stage_cost) {
    const std::int64_t tiles = pieces(rows, 64 * warpgroups) * pieces(num_tokens, tile_tokens);
    const std::int64_t cost = pieces(tiles, device.num_sms) * stage_cost;
    if (best_cost < 0 || cost < best_cost) {
      best_cost = cost;
      best = {warpgroups, tile_tokens, 1};
    }
    // A cluster takes one tile.
    if (warpgroups == 1 && 2 * tiles <= device.num_sms && kSplitCost < best_cost) {
      best_cost = kSplitCost;
      best = {warpgroups, tile_tokens, 2};
    }
  };
  std::int32_t fitting = 16;
  while (fitting < num_tokens && fitting < 64) fitting *= 2;
  consider(1, fitting, kNarrowCost);
  if (num_tokens > 64) consider(1, 128, kNarrowCost);
  for (std::int32_t tokens = 256; tokens >= 128; tokens -= 32) {
    consider(2, tokens, wide_cost(tokens));
  }
  return best;
}

std::int32_t expert_tile_tokens(std::int32_t num_slots, std::int32_t num_experts,
                                const DeviceInfo& device) {
  constexpr std::int32_t kPortable = 128;
  constexpr std::int32_t kFew = 64;
  constexpr std::int32_t kWide = 192;
  if (!has_wgmma(device)) return kPortable;
  // Up to 48 tokens an expert its weights' bytes are the time: kernels that decode them fast.
  const std::int32_t mean = num_slots / std::min(num_experts, num_slots);
  return mean <= 48 ? kFew : kWide;
}

}  // namespace gptoss::cuda
