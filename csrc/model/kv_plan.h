// How keys and values are laid out in pages, the same for every backend's bookkeeping.
//
// A page covers kPageTokens consecutive positions, from a multiple of kPageTokens, for all layers
// of its group: full-attention layers and sliding-window layers have separate pages, so that pages
// out of a window's sight can be released.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/model_config.h"

namespace gptoss {

constexpr std::int64_t kPageTokens = 64;
// Attention sums over keys in pieces that begin at absolute multiples of this, so that the order of
// additions does not depend on how the tokens came in.
constexpr std::int64_t kSplitTokens = 1024;
static_assert(kSplitTokens % kPageTokens == 0);

enum class KvGroup { kFull = 0, kWindow = 1 };
constexpr int kNumKvGroups = 2;
enum class KvDtype { kBf16, kFloat32 };

using PageId = std::int32_t;

struct KvPlan {
  KvPlan(const ModelConfig& config, KvDtype dtype);

  KvDtype dtype;
  std::int64_t num_kv_heads;
  std::int64_t window;                          // 0 when no layer slides
  std::int64_t num_group_layers[kNumKvGroups];  // layers a page of the group covers
  std::vector<KvGroup> layer_group;             // [num_layers]
  std::vector<std::int64_t> layer_in_group;     // [num_layers]
  std::int64_t num_layers;

  std::size_t element_bytes() const { return dtype == KvDtype::kBf16 ? 2 : 4; }
  // One layer of a page: keys [num_kv_heads][64 dims][kPageTokens], then values
  // [num_kv_heads][kPageTokens][64 dims].
  std::size_t layer_bytes() const {
    return static_cast<std::size_t>(2 * num_kv_heads * kHeadDim * kPageTokens) * element_bytes();
  }
  std::size_t page_bytes(KvGroup group) const {
    return static_cast<std::size_t>(num_group_layers[static_cast<int>(group)]) * layer_bytes();
  }
  // First page that a query at `position` can see in a group.
  std::int64_t first_visible_page(KvGroup group, std::int64_t position) const {
    if (group == KvGroup::kFull || position < window) return 0;
    return (position - window + 1) / kPageTokens;
  }
};

}  // namespace gptoss
