// One forward step as the kernels see it: arrays in device memory, filled by one upload.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "model/kv_plan.h"

namespace gptoss::cuda {

// Rows a step may have for the kernels that stream each weight once past a few tokens; their
// results do not depend on what else is in the batch. More rows go to the tensor-core GEMMs.
constexpr int kSmallRows = 32;

struct SegmentInfo {
  std::int32_t first_row;  // of the batch
  std::int32_t num_rows;
  std::int32_t position;  // of the first row's token
  // pages[page_begin[group] + n - first_page[group]] is page n of the sequence.
  std::int32_t page_begin[kNumKvGroups];
  std::int32_t first_page[kNumKvGroups];
};

// A page in device memory: for each layer of its group, keys [num_kv_heads][kPageTokens][64], then
// values [num_kv_heads][kPageTokens][64], bf16. (The plan's keys are transposed: read_page and
// write_page convert.)
struct StepView {
  // With fewer than kSmallRows rows, these three go on to kSmallRows: tokens and positions -1,
  // segment 0. Every address stays the same from step to step unless a batch needs more room than
  // any before (whoever keeps them in a graph compares).
  const std::int32_t* tokens;          // [num_rows]
  const std::int32_t* positions;       // [num_rows]
  const std::int32_t* segment_of;      // [num_rows]
  const SegmentInfo* segments;         // [num_segments]
  __nv_bfloat16* const* pages;         // addresses of pages, all groups and segments
  const std::int32_t* logit_rows;      // [num_logit_rows], rows of the batch, ascending
  const std::int32_t* forced_experts;  // [num_layers][num_rows][experts_per_token] or null
  std::int32_t num_rows;
  std::int32_t num_segments;
  std::int32_t num_logit_rows;
  std::int32_t max_position;  // largest of the positions
};

}  // namespace gptoss::cuda
