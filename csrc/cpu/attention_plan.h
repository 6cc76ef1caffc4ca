// How one step's attention is cut into tasks, and where each layer's pages are.
//
// A task is one kv head and a tile of one segment's tokens, over all keys; where that gives too few
// tasks for the threads (a single token far into its text), keys are cut into pieces too and merged
// after a barrier. Both give the same bits.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/batch.h"
#include "cpu/kernel_table.h"
#include "cpu/kv_storage.h"

namespace gptoss::cpu {

struct AttentionTask {
  std::int32_t segment;
  std::int32_t kv_head;
  Range tokens;             // of the segment
  std::int32_t split;       // piece of keys, or kWhole
  std::int64_t partial;     // first AttentionPartial, for a piece
  std::int32_t num_splits;  // for a merge
};
constexpr std::int32_t kWhole = -1;

struct AttentionPlan {
  std::vector<std::int64_t> first_token;  // [num_segments], row in the batch
  std::vector<AttentionTask> tasks[kNumKvGroups];
  std::vector<AttentionTask> merges[kNumKvGroups];  // empty when nothing is split
  std::vector<AttentionPartial> partials;

  void build(const Batch& batch, const KvPlan& plan, const KvStorage& storage,
             std::int64_t num_heads, int num_threads, Range layers);

  // Addresses of a segment's pages for one of those layers, from batch.segments[segment].first_page
  // on.
  std::byte* const* layer_pages(std::int64_t layer, std::int64_t segment) const {
    const std::int64_t index = (layer - first_layer_) * num_segments_ + segment;
    return pointers_.data() + offsets_[static_cast<std::size_t>(index)];
  }

 private:
  void place_pages(const Batch& batch, const KvPlan& plan, const KvStorage& storage, Range layers);
  void cut_segment(const Segment& segment, std::int32_t index, KvGroup group, const KvPlan& plan,
                   std::int64_t num_heads, int num_threads);

  std::int64_t num_segments_ = 0;
  std::int64_t first_layer_ = 0;
  std::int64_t num_partials_ = 0;
  std::vector<std::byte*> pointers_;
  std::vector<std::size_t> offsets_;  // [layers][num_segments]
};

}  // namespace gptoss::cpu
