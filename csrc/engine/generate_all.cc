// Many generations a token at a time, in common steps.
#include <deque>
#include <exception>

#include "base/error.h"
#include "engine/generate.h"

namespace gptoss {

// One generation's part of a call.
struct Generation::Shared {
  Shared(Generation& generation, std::size_t index)
      : generation(generation), index(index), use(*generation.session_, "generate") {
    generation.check_not_moved(use);
  }

  Generation& generation;
  const std::size_t index;  // among the caller's
  SessionUse use;
  std::optional<DrawOptions> options;
  bool forwards = false;
  DrawId draw = 0;
  std::int32_t token = 0;  // that stands for the draw
  std::optional<DrawOptions> ahead_options;
  DrawId ahead = 0;
};

// Queues the steps that give the next draws, and those after them.
void Generation::queue_all(std::deque<Shared>& all, const CancelCheck& cancel) {
  std::vector<ForwardJob> jobs;
  for (Shared& shared : all) {
    Generation& self = shared.generation;
    if (self.ahead_) {
      shared.draw = self.take_ahead(shared.use);
      continue;
    }
    self.begin_forward(shared.use);
    shared.forwards = true;
    jobs.push_back({.use = &shared.use,
                    .tokens = self.prompt_,
                    .logits = LogitsWanted::kDraw,
                    .draw = &*shared.options,
                    .drawn = &shared.draw});
  }
  if (!jobs.empty()) {
    run_forward(jobs, {.op = "generate", .cancel = &cancel});
    for (Shared& shared : all) {
      if (shared.forwards) shared.generation.end_forward(shared.use);
    }
  }
  std::vector<StepEntry> entries;
  for (Shared& shared : all) {
    shared.use.reserve_tokens(1);
    if (shared.generation.is_last(shared.use)) continue;
    shared.token = token_of_draw(shared.draw);
    shared.ahead_options = shared.generation.sampler_.draw_options(1);
    entries.push_back({.sequence = &shared.use.sequence(),
                       .tokens = {&shared.token, 1},
                       .logits = LogitsWanted::kDraw,
                       .out = nullptr,
                       .draw = &*shared.ahead_options,
                       .drawn = &shared.ahead,
                       .ahead = true});
  }
  if (entries.empty()) return;
  try {
    all.front().use.core().scheduler.run({.entries = entries});
    for (Shared& shared : all) {
      if (!shared.generation.is_last(shared.use)) shared.generation.ahead_ = shared.ahead;
    }
  } catch (const Error&) {
    // The next call meets the same and reports it.
  }
}

std::vector<std::optional<std::int32_t>> Generation::next_of_all(
    std::span<Generation* const> generations, const CancelCheck& cancel) {
  std::vector<std::optional<std::int32_t>> tokens(generations.size());
  std::deque<Shared> waiting;
  for (std::size_t i = 0; i < generations.size(); ++i) {
    if (generations[i]->finish_reason_ == FinishReason::kNone) {
      waiting.emplace_back(*generations[i], i);
    }
  }
  bool draws = true;
  for (Shared& shared : waiting) {
    GPTOSS_REQUIRE(InvalidArgument, &shared.use.core() == &waiting.front().use.core(),
                   "[generate] expected generations of one model, entry ", shared.index,
                   " belongs to another");
    shared.options = shared.generation.sampler_.draw_options(0);
    draws = draws && shared.options && !shared.generation.has_logits_ &&
            shared.use.core().backend->can_draw();
  }
  if (waiting.empty()) return tokens;
  std::exception_ptr error;
  if (draws) queue_all(waiting, cancel);
  for (Shared& shared : waiting) {
    Generation& self = shared.generation;
    try {
      const SampledToken result = draws ? self.wait_draw(shared.use, shared.draw)
                                        : self.sample(shared.use, nullptr, cancel);
      self.take(shared.use, result.token);
      tokens[shared.index] = result.token;
    } catch (...) {
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
  return tokens;
}

}  // namespace gptoss
