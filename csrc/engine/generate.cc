#include "engine/generate.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "engine/forward.h"

namespace gptoss {

Sampler Generation::make_sampler(Session& session, std::span<const std::int32_t> prompt,
                                 const GenerateOptions& options) {
  const SessionUse use(session, "generate");
  check_tokens(use, prompt, "generate");
  const std::int64_t held = use.position() + static_cast<std::int64_t>(prompt.size());
  GPTOSS_REQUIRE(
      InvalidArgument, held > 0,
      "[generate] expected a prompt, got none on an empty session; give at least one token");
  GPTOSS_REQUIRE(InvalidArgument, held < session.max_tokens(),
                 "[generate] expected room for at least one new token, but the session's ",
                 use.position(), " tokens and a prompt of ", prompt.size(), " fill all ",
                 session.max_tokens(),
                 "; rewind, shorten the prompt or make a session with a larger max_tokens");
  GPTOSS_REQUIRE(InvalidArgument, !options.max_new_tokens || *options.max_new_tokens >= 1,
                 "[generate] expected max_new_tokens >= 1, got ", *options.max_new_tokens,
                 "; use forward to append tokens only");
  for (const std::int32_t token : options.stop_tokens) {
    GPTOSS_REQUIRE(InvalidArgument, token >= 0 && token < session.vocab_size(),
                   "[generate] expected stop ids in [0, ", session.vocab_size(), "), got ", token,
                   "; were they made with this model's tokenizer?");
  }
  std::vector<std::int32_t> seen;
  if (options.sampling.repetition_penalty != 1) {
    seen = use.tokens();
    seen.insert(seen.end(), prompt.begin(), prompt.end());
  }
  return Sampler(options.sampling, session.vocab_size(), use.core().banned_tokens(), seen);
}

Generation::Generation(std::shared_ptr<Session> session, std::vector<std::int32_t> prompt,
                       GenerateOptions options)
    : session_(std::move(session)),
      prompt_(std::move(prompt)),
      options_(std::move(options)),
      sampler_(make_sampler(*session_, prompt_, options_)) {
  const std::lock_guard lock(session_->state_mutex_);
  version_ = session_->version_;
}

void Generation::check_not_moved(const SessionUse& use) const {
  GPTOSS_REQUIRE(InvalidArgument, use.session().version_ == version_,
                 "[generate] expected the session as this generation left it, another call changed "
                 "it; start another generation");
}

void Generation::begin_forward(SessionUse& use) {
  if (!started_ && core_ == nullptr) {
    use.core().scheduler.register_generation(this);
    core_ = use.session().core_;
  }
  if (prompt_.empty() && use.pending().empty()) {
    // Continues what is held: the last token is forwarded again, for its logits. Free, since the
    // sequence keeps the pages that this needs.
    use.sequence().rewind(use.position() - 1);
  }
}

void Generation::end_forward(SessionUse& use) {
  version_ = use.session().version_;
  prompt_.clear();
  if (started_) return;
  started_ = true;
  use.sequence().mark();
}

void Generation::forward_next(SessionUse& use, const CancelCheck& cancel, ForwardJob job) {
  begin_forward(use);
  job.use = &use;
  job.tokens = prompt_;
  run_forward({&job, 1}, {.op = "generate", .generation = this, .cancel = &cancel});
  end_forward(use);
}

SampledToken Generation::sample(SessionUse& use, const TokenMask* mask, const CancelCheck& cancel) {
  forget_ahead(use);
  if (!has_logits_) {
    logits_.resize(static_cast<std::size_t>(session_->vocab_size()));
    forward_next(use, cancel, {.logits = LogitsWanted::kLast, .out = logits_.data()});
    has_logits_ = true;
  }
  use.reserve_tokens(1);
  SampledToken result = sampler_.sample(logits_, mask);
  has_logits_ = false;
  return result;
}

SampledToken Generation::draw(SessionUse& use, const DrawOptions& options,
                              const CancelCheck& cancel) {
  DrawId draw = 0;
  if (ahead_) {
    if (cancel) cancel();
    draw = take_ahead(use);
  } else {
    forward_next(use, cancel, {.logits = LogitsWanted::kDraw, .draw = &options, .drawn = &draw});
  }
  use.reserve_tokens(1);
  // Often the first token is all that is wanted, and what was queued cannot be taken back: whoever
  // comes next would wait for a step that serves nobody.
  if (num_generated_ > 0) run_ahead(use, draw);
  return wait_draw(use, draw);
}

SampledToken Generation::wait_draw(SessionUse& use, DrawId draw) {
  try {
    const std::int32_t token = use.core().backend->wait_draw(draw);
    sampler_.drawn(token);
    return {.token = token, .logprob = std::nullopt, .top = {}};
  } catch (...) {
    forget_ahead(use);
    throw;
  }
}

// Whether the token to come ends the generation by its number.
bool Generation::is_last(const SessionUse& use) const {
  return (options_.max_new_tokens && num_generated_ + 1 >= *options_.max_new_tokens) ||
         use.position() + 1 >= session_->max_tokens();
}

// Queues the step of the token that `draw` gives, unless that will be the last.
void Generation::run_ahead(SessionUse& use, DrawId draw) {
  if (is_last(use)) return;
  const std::int32_t token = token_of_draw(draw);
  const std::optional<DrawOptions> options = sampler_.draw_options(1);
  DrawId ahead = 0;
  StepEntry entry{.sequence = &use.sequence(),
                  .tokens = {&token, 1},
                  .logits = LogitsWanted::kDraw,
                  .out = nullptr,
                  .draw = &*options,
                  .drawn = &ahead,
                  .ahead = true};
  try {
    use.core().scheduler.run({.entries = {&entry, 1}, .generation = this});
    ahead_ = ahead;
  } catch (const Error&) {
    // The next call meets the same and reports it.
  }
}

DrawId Generation::take_ahead(SessionUse& use) noexcept {
  const DrawId draw = *ahead_;
  ahead_.reset();
  use.sequence().advance(1);
  return draw;
}

void Generation::forget_ahead(SessionUse& use) noexcept {
  if (!ahead_) return;
  ahead_.reset();
  use.sequence().unreserve();
}

std::optional<SampledToken> Generation::next(const TokenMask* mask, const CancelCheck& cancel) {
  if (finish_reason_ != FinishReason::kNone) return std::nullopt;
  SessionUse use(*session_, "generate");
  check_not_moved(use);
  const bool draws = mask == nullptr && !has_logits_ && use.core().backend->can_draw();
  const std::optional<DrawOptions> options = draws ? sampler_.draw_options(0) : std::nullopt;
  SampledToken result = options ? draw(use, *options, cancel) : sample(use, mask, cancel);
  take(use, result.token);
  return result;
}

void Generation::take(SessionUse& use, std::int32_t token) {
  use.append({&token, 1});
  version_ = use.session().version_;
  ++num_generated_;
  const auto& stops = options_.stop_tokens;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    finish(FinishReason::kStop);
  } else if ((options_.max_new_tokens && num_generated_ >= *options_.max_new_tokens) ||
             use.position() >= session_->max_tokens()) {
    finish(FinishReason::kLength);
  }
  if (finish_reason_ != FinishReason::kNone) forget_ahead(use);
}

void Generation::finish(FinishReason reason) noexcept {
  finish_reason_ = reason;
  if (core_ == nullptr) return;
  core_->scheduler.unregister_generation(this);
  core_ = nullptr;
}

void Generation::close() noexcept {
  if (finish_reason_ == FinishReason::kNone) finish(FinishReason::kClosed);
}

}  // namespace gptoss
