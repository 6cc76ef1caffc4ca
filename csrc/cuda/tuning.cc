#include "cuda/tuning.h"

#include <algorithm>

namespace gptoss::cuda {
namespace {

constexpr std::int64_t pieces(std::int64_t size, std::int64_t piece) {
  return (size + piece - 1) / piece;
}

}  // namespace

DenseTiling dense_tiling(std::int64_t rows, std::int32_t num_tokens, const DeviceInfo& device) {
  // What a tile costs besides its products, in tokens: the first stage's latency, the epilogue, and
  // that weights are read from shared memory however few the tokens.
  constexpr std::int64_t kOverhead = 24;
  DenseTiling best{1, 16};
  std::int64_t best_cost = -1;
  const auto consider = [&](std::int32_t warpgroups, std::int32_t tile_tokens) {
    const std::int64_t tiles = pieces(rows, 64 * warpgroups) * pieces(num_tokens, tile_tokens);
    const std::int64_t cost =
        pieces(tiles, device.num_sms) * (tile_tokens + kOverhead) * warpgroups;
    if (best_cost < 0 || cost < best_cost) {
      best_cost = cost;
      best = {warpgroups, tile_tokens};
    }
  };
  // Two warpgroups share their tokens' bytes: wide tiles need that. One makes more tiles.
  for (std::int32_t tokens = 256; tokens >= 128; tokens -= 32) consider(2, tokens);
  if (num_tokens <= 256) {
    for (std::int32_t tokens = 64; tokens >= 16; tokens /= 2) consider(1, tokens);
  }
  return best;
}

std::int32_t expert_tile_tokens(std::int32_t num_slots, std::int32_t num_experts,
                                const DeviceInfo& device) {
  constexpr std::int32_t kPortable = 128;
  constexpr std::int32_t kWide = 256;
  if (!has_wgmma(device)) return kPortable;
  // Up to 48 tokens an expert its weights' bytes are the time: four warpgroups decode them.
  const std::int32_t mean = num_slots / std::min(num_experts, num_slots);
  return mean <= 48 ? kLeastTileTokens : kWide;
}

}  // namespace gptoss::cuda
