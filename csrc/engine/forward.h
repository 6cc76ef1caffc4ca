// From calls on sessions to steps of at most max_batch_tokens tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/session.h"

namespace gptoss {

// One session's part of a call.
struct ForwardJob {
  SessionUse* use = nullptr;
  std::span<const std::int32_t> tokens = {};
  LogitsWanted logits = LogitsWanted::kNone;
  float* out = nullptr;               // [rows][vocab]
  const DrawOptions* draw = nullptr;  // with kDraw
  DrawId* drawn = nullptr;            // out, with kDraw
};

struct ForwardOptions {
  const char* op = "forward";
  const void* generation = nullptr;
  const std::int32_t* forced_experts = nullptr;
  const CancelCheck* cancel = nullptr;
};

// Forwards the jobs together and appends their tokens. All of them or none: on an error or a
// cancellation every session is as before. The uses belong to different sessions of one model.
void run_forward(std::span<ForwardJob> jobs, const ForwardOptions& options);

// Throws InvalidArgument for an id outside the vocabulary or more tokens than the session may hold.
void check_tokens(const SessionUse& use, std::span<const std::int32_t> tokens, const char* op);

struct BatchItem {
  std::shared_ptr<Session> session;
  std::span<const std::int32_t> tokens;
  LogitsWanted logits = LogitsWanted::kLast;
  float* out = nullptr;  // [rows][vocab]
};

// Many sessions of one model in common steps, logits for each.
void forward_batch(std::span<const BatchItem> items, const CancelCheck& cancel = {});

}  // namespace gptoss
