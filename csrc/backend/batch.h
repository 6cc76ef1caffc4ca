// The one input of a forward step: a ragged list of sequences, each with new tokens.
#pragma once

#include <cstdint>
#include <span>

#include "model/kv_plan.h"

namespace gptoss {

enum class LogitsWanted { kNone, kLast, kAll };

// One sequence's new tokens. The pages that hold its keys and values, those of the new tokens
// included, are reserved before the step.
struct Segment {
  std::span<const std::int32_t> tokens;
  std::int64_t position = 0;  // of tokens[0]
  // Page ids by page number (position / kPageTokens) from first_page on, for each group.
  std::span<const PageId> pages[kNumKvGroups];
  std::int64_t first_page[kNumKvGroups] = {0, 0};
  LogitsWanted logits = LogitsWanted::kNone;

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t num_logit_rows() const {
    return logits == LogitsWanted::kNone ? 0 : logits == LogitsWanted::kLast ? 1 : num_tokens();
  }
};

struct Batch {
  std::span<const Segment> segments;
  // [sum of num_logit_rows][vocab] float32, rows in the order of the segments.
  float* logits = nullptr;
  // Tests only: expert ids to use instead of the router's choice,
  // [num_layers][num_tokens of the batch][experts_per_token]; null for none.
  const std::int32_t* forced_experts = nullptr;

  std::int64_t num_tokens() const {
    std::int64_t total = 0;
    for (const Segment& segment : segments) total += segment.num_tokens();
    return total;
  }
  std::int64_t num_logit_rows() const {
    std::int64_t total = 0;
    for (const Segment& segment : segments) total += segment.num_logit_rows();
    return total;
  }
};

}  // namespace gptoss
