// The one input of a forward step: a ragged list of sequences, each with new tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/kv_plan.h"

namespace gptoss {

// kDraw: the last token's logits stay where they are, and a token is drawn from them there.
enum class LogitsWanted { kNone, kLast, kAll, kDraw };

// How a token is drawn by the backend: those steps of engine/sampler.h that are a function of one
// row alone, with the same arithmetic, so that the same logits and number give the same token.
struct DrawOptions {
  double temperature = 0;  // 0: the largest logit
  std::int64_t top_k = 0;  // 0: all
  double top_p = 1.0;
  double min_p = 0.0;
  std::uint64_t random = 0;  // the number to draw with, uniform over 64 bits
  std::shared_ptr<const std::vector<std::int32_t>> banned;  // never drawn; may be null
};

// Draws are numbered, in the order in which they were queued.
using DrawId = std::uint64_t;

// A segment's token while only the backend knows it: what a draw among the last kDrawsKept gives.
constexpr std::int32_t kDrawsKept = 1 << 14;
constexpr std::int32_t token_of_draw(DrawId draw) {
  return -2 - static_cast<std::int32_t>(draw % kDrawsKept);
}
constexpr bool is_draw(std::int32_t token) {
  return token <= -2;
}
constexpr std::int32_t draw_of(std::int32_t token) {
  return -2 - token;
}

// One sequence's new tokens. The pages that hold its keys and values, those of the new tokens
// included, are reserved before the step.
struct Segment {
  std::span<const std::int32_t> tokens;
  std::int64_t position = 0;  // of tokens[0]
  // Page ids by page number (position / kPageTokens) from first_page on, for each group.
  std::span<const PageId> pages[kNumKvGroups];
  std::int64_t first_page[kNumKvGroups] = {0, 0};
  LogitsWanted logits = LogitsWanted::kNone;
  const DrawOptions* draw = nullptr;  // with kDraw

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  // Rows handed out, and those that are computed.
  std::int64_t num_logit_rows() const {
    return logits == LogitsWanted::kAll ? num_tokens() : logits == LogitsWanted::kLast ? 1 : 0;
  }
  std::int64_t num_scored_rows() const {
    return logits == LogitsWanted::kDraw ? 1 : num_logit_rows();
  }
};

struct Batch {
  std::span<const Segment> segments;
  // [sum of num_logit_rows][vocab] float32, rows in the order of the segments.
  float* logits = nullptr;
  // Tests only: expert ids to use instead of the router's choice,
  // [num_layers][num_tokens of the batch][experts_per_token]; null for none.
  const std::int32_t* forced_experts = nullptr;
  // Out: one for each segment with kDraw, in their order.
  DrawId* draws = nullptr;

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
  std::int64_t num_scored_rows() const {
    std::int64_t total = 0;
    for (const Segment& segment : segments) total += segment.num_scored_rows();
    return total;
  }
};

}  // namespace gptoss
