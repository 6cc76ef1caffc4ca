#include "cpu/attention_plan.h"

#include <algorithm>

namespace gptoss::cpu {
namespace {

// Tokens of a tile: enough queries to share each page read, few enough to balance the threads.
constexpr std::int64_t kTokenTile = 16;
// Pieces are worth their merge only when there are fewer whole tasks than this for each thread.
constexpr std::int64_t kTasksPerThread = 3;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

void AttentionPlan::build(const Batch& batch, const KvPlan& plan, const KvStorage& storage,
                          std::int64_t num_heads, int num_threads, Range layers) {
  num_segments_ = static_cast<std::int64_t>(batch.segments.size());
  num_partials_ = 0;
  first_token.clear();
  for (int group = 0; group < kNumKvGroups; ++group) {
    tasks[group].clear();
    merges[group].clear();
  }
  std::int64_t row = 0;
  for (std::int64_t s = 0; s < num_segments_; ++s) {
    const Segment& segment = batch.segments[static_cast<std::size_t>(s)];
    first_token.push_back(row);
    row += segment.num_tokens();
    for (const KvGroup group : {KvGroup::kFull, KvGroup::kWindow}) {
      cut_segment(segment, static_cast<std::int32_t>(s), group, plan, num_heads, num_threads);
    }
  }
  partials.resize(static_cast<std::size_t>(num_partials_));
  place_pages(batch, plan, storage, layers);
}

void AttentionPlan::cut_segment(const Segment& segment, std::int32_t index, KvGroup group,
                                const KvPlan& plan, std::int64_t num_heads, int num_threads) {
  const std::int64_t num_tokens = segment.num_tokens();
  const std::int64_t tiles = ceil_div(num_tokens, kTokenTile);
  const std::int64_t num_splits = ceil_div(segment.position + num_tokens, kSplitTokens);
  const bool split = group == KvGroup::kFull && num_splits > 1 && tiles == 1 &&
                     plan.num_kv_heads * num_segments_ < kTasksPerThread * num_threads;
  const std::int64_t queries = num_heads / plan.num_kv_heads * num_tokens;
  auto& group_tasks = tasks[static_cast<int>(group)];
  for (std::int32_t head = 0; head < plan.num_kv_heads; ++head) {
    if (split) {
      merges[static_cast<int>(group)].push_back({index,
                                                 head,
                                                 {0, num_tokens},
                                                 kWhole,
                                                 num_partials_,
                                                 static_cast<std::int32_t>(num_splits)});
      for (std::int32_t piece = 0; piece < num_splits; ++piece) {
        group_tasks.push_back({index, head, {0, num_tokens}, piece, num_partials_, 0});
        num_partials_ += queries;
      }
      continue;
    }
    for (std::int64_t tile = tiles; tile-- > 0;) {  // the longest first
      const Range tokens{tile * kTokenTile, std::min((tile + 1) * kTokenTile, num_tokens)};
      group_tasks.push_back({index, head, tokens, kWhole, 0, 0});
    }
  }
}

void AttentionPlan::place_pages(const Batch& batch, const KvPlan& plan, const KvStorage& storage,
                                Range layers) {
  first_layer_ = layers.begin;
  pointers_.clear();
  offsets_.clear();
  for (std::int64_t layer = layers.begin; layer < layers.end; ++layer) {
    const KvGroup group = plan.layer_group[static_cast<std::size_t>(layer)];
    const std::size_t offset =
        plan.layer_bytes() *
        static_cast<std::size_t>(plan.layer_in_group[static_cast<std::size_t>(layer)]);
    for (const Segment& segment : batch.segments) {
      offsets_.push_back(pointers_.size());
      for (const PageId page : segment.pages[static_cast<int>(group)]) {
        pointers_.push_back(storage.page(group, page).data() + offset);
      }
    }
  }
}

}  // namespace gptoss::cpu
