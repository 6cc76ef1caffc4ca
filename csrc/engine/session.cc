#include "engine/session.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "engine/forward.h"
#include "engine/logits.h"

namespace gptoss {
namespace {

// Logits of a block of scored tokens: large enough for an efficient step, small against a model.
constexpr std::int64_t kScoreLogitsBytes = std::int64_t{128} << 20;

}  // namespace

SessionUse::SessionUse(Session& session, const char* op) : session_(session) {
  GPTOSS_REQUIRE(InvalidArgument, !session.in_use_.exchange(true, std::memory_order_acquire), "[",
                 op,
                 "] expected an idle session, another call on it is under way; use one session a "
                 "thread (fork makes another) or wait");
  try {
    GPTOSS_REQUIRE(InvalidArgument, session.core_ != nullptr, "[", op,
                   "] expected an open session, this one was closed; make another");
    session.core_->check_open(op);
  } catch (...) {
    session.in_use_.store(false, std::memory_order_release);
    throw;
  }
}

SessionUse::~SessionUse() {
  session_.publish();
  session_.in_use_.store(false, std::memory_order_release);
}

void SessionUse::reserve_tokens(std::int64_t more) {
  const std::lock_guard lock(session_.state_mutex_);
  const std::size_t needed = session_.tokens_.size() + static_cast<std::size_t>(more);
  if (needed > session_.tokens_.capacity()) {
    session_.tokens_.reserve(std::max(needed, 2 * session_.tokens_.capacity()));
  }
}

void SessionUse::append(std::span<const std::int32_t> tokens) noexcept {
  const std::lock_guard lock(session_.state_mutex_);
  session_.tokens_.insert(session_.tokens_.end(), tokens.begin(), tokens.end());
  ++session_.version_;
}

void SessionUse::truncate(std::int64_t position) noexcept {
  const std::lock_guard lock(session_.state_mutex_);
  session_.tokens_.resize(static_cast<std::size_t>(position));
  ++session_.version_;
}

void Session::publish() noexcept {
  const std::lock_guard lock(state_mutex_);
  cached_ = sequence_->length();
  num_marks_ = 0;
  for (const KvSnapshot& mark : sequence_->marks()) mark_positions_[num_marks_++] = mark.position;
}

std::shared_ptr<Session> Session::create(std::shared_ptr<ModelCore> core, std::int64_t max_tokens) {
  const std::int64_t most = core->config.max_context;
  GPTOSS_REQUIRE(InvalidArgument, max_tokens >= 0 && max_tokens <= most,
                 "[session] expected max_tokens of 1 to ", most, " (the model's context), got ",
                 max_tokens, "; ask for less");
  core->check_open("session");
  core->check_files();
  return std::make_shared<Session>(Key{}, std::move(core), max_tokens == 0 ? most : max_tokens);
}

Session::Session(Key, std::shared_ptr<ModelCore> core, std::int64_t max_tokens)
    : core_(std::move(core)),
      max_tokens_(max_tokens),
      vocab_size_(core_->config.vocab_size),
      sequence_(std::in_place, core_->pool, core_->kv_plan) {
  core_->num_sessions.fetch_add(1);
}

Session::~Session() {
  if (core_ == nullptr) return;
  sequence_.reset();
  core_->num_sessions.fetch_sub(1);
  core_->scheduler.trim_if_idle();
}

std::vector<std::int32_t> Session::tokens() const {
  const std::lock_guard lock(state_mutex_);
  return tokens_;
}

std::int64_t Session::position() const {
  const std::lock_guard lock(state_mutex_);
  return static_cast<std::int64_t>(tokens_.size());
}

std::int64_t Session::cached() const {
  const std::lock_guard lock(state_mutex_);
  return cached_;
}

bool Session::closed() const {
  const std::lock_guard lock(state_mutex_);
  return core_ == nullptr || core_->closed.load(std::memory_order_acquire);
}

std::vector<std::int64_t> Session::marks() const {
  const std::lock_guard lock(state_mutex_);
  return {mark_positions_, mark_positions_ + num_marks_};
}

void Session::forward(std::span<const std::int32_t> tokens, LogitsWanted logits, float* out,
                      const CancelCheck& cancel) {
  SessionUse use(*this, "forward");
  ForwardJob job{&use, tokens, logits, out};
  run_forward({&job, 1}, {.op = "forward", .cancel = &cancel});
}

void Session::forward_forced(std::span<const std::int32_t> tokens,
                             std::span<const std::int32_t> experts, float* out) {
  SessionUse use(*this, "forward");
  const ModelConfig& config = use.core().config;
  const std::int64_t expected = config.num_layers * std::ssize(tokens) * config.experts_per_token;
  GPTOSS_REQUIRE(InvalidArgument, std::ssize(experts) == expected, "[forward] expected ", expected,
                 " forced experts ([layers][tokens][experts per token]), got ", experts.size());
  for (const std::int32_t expert : experts) {
    GPTOSS_REQUIRE(InvalidArgument, expert >= 0 && expert < config.num_experts,
                   "[forward] expected forced experts in [0, ", config.num_experts, "), got ",
                   expert);
  }
  ForwardJob job{&use, tokens, LogitsWanted::kAll, out};
  run_forward({&job, 1}, {.op = "forward", .forced_experts = experts.data()});
}

std::vector<float> Session::score(std::span<const std::int32_t> tokens, const CancelCheck& cancel) {
  SessionUse use(*this, "score");
  check_tokens(use, tokens, "score");
  GPTOSS_REQUIRE(InvalidArgument, tokens.size() >= 2, "[score] expected at least two tokens, got ",
                 tokens.size(), "; the first is given, the others are scored");
  ModelCore& core = use.core();
  core.check_files();
  const std::int64_t block = std::clamp<std::int64_t>(
      kScoreLogitsBytes / (vocab_size_ * std::int64_t{sizeof(float)}), 1, core.max_batch_tokens);
  // The last token's logits say nothing about the tokens given.
  const std::int64_t num_rows = static_cast<std::int64_t>(tokens.size()) - 1;
  const AlignedBuffer logits(
      static_cast<std::size_t>(std::min(block, num_rows) * vocab_size_) * sizeof(float),
      "logits of scored tokens");
  std::vector<float> result(static_cast<std::size_t>(num_rows));
  std::vector<std::int32_t> feed(use.pending().begin(), use.pending().end());
  const std::int64_t num_waiting = static_cast<std::int64_t>(feed.size());
  feed.insert(feed.end(), tokens.begin(), tokens.end() - 1);

  KvSnapshot before = use.sequence().snapshot(PageHolder::kSession);
  try {
    for (std::int64_t done = 0; done < num_waiting + num_rows;) {
      if (cancel) cancel();
      const bool waiting = done < num_waiting;
      const std::int64_t count = waiting ? std::min(num_waiting - done, core.max_batch_tokens)
                                         : std::min(num_waiting + num_rows - done, block);
      StepEntry entry{&use.sequence(),
                      {feed.data() + done, static_cast<std::size_t>(count)},
                      waiting ? LogitsWanted::kNone : LogitsWanted::kAll,
                      waiting ? nullptr : logits.as<float>()};
      core.scheduler.run({.entries = {&entry, 1}});
      for (std::int64_t i = 0; !waiting && i < count; ++i) {
        const std::int64_t row = done - num_waiting + i;
        result[static_cast<std::size_t>(row)] = static_cast<float>(log_probability(
            {logits.as<float>() + i * vocab_size_, static_cast<std::size_t>(vocab_size_)},
            tokens[static_cast<std::size_t>(row) + 1]));
      }
      done += count;
    }
  } catch (...) {
    use.sequence().restore(std::move(before));
    throw;
  }
  use.sequence().restore(std::move(before));
  return result;
}

std::shared_ptr<Session> Session::fork() {
  SessionUse use(*this, "fork");
  auto copy = std::make_shared<Session>(Key{}, core_, max_tokens_);
  copy->tokens_ = tokens_;
  copy->sequence_ = sequence_;
  copy->publish();
  return copy;
}

std::int64_t Session::rewind(std::int64_t position) {
  SessionUse use(*this, "rewind");
  GPTOSS_REQUIRE(InvalidArgument, position >= 0 && position <= use.position(),
                 "[rewind] expected a position of 0 to ", use.position(), " (tokens held), got ",
                 position, "; a session only goes back");
  const std::int64_t length = use.sequence().rewind(position);
  use.truncate(position);
  core_->scheduler.trim_if_idle();
  return position - length;
}

std::int64_t Session::mark() {
  return SessionUse(*this, "mark").sequence().mark();
}

void Session::close() {
  {
    const std::lock_guard lock(state_mutex_);
    if (core_ == nullptr) return;
  }
  std::shared_ptr<ModelCore> released;
  {
    GPTOSS_REQUIRE(
        InvalidArgument, !in_use_.exchange(true, std::memory_order_acquire),
        "[close] expected an idle session, another call on it is under way; wait for it");
    const std::lock_guard lock(state_mutex_);
    if (core_ != nullptr) {
      released = std::move(core_);
      core_ = nullptr;
      sequence_.reset();
      cached_ = 0;
      num_marks_ = 0;
      ++version_;
    }
    in_use_.store(false, std::memory_order_release);
  }
  if (released == nullptr) return;
  released->num_sessions.fetch_sub(1);
  released->scheduler.trim_if_idle();
}

}  // namespace gptoss
