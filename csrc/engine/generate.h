// One generation on a session, driven a token at a time.
//
// The session's tokens are always the prompt plus what was returned, a stop token included; the
// last of them has no keys and values yet and is forwarded first next time. So a generation may be
// left at any moment and nothing is lost. If something else changes the session meanwhile, the
// generation is over and `next` says so.
//
// Where the backend draws, no logits come to the host, and from the second token on a step is
// queued before the token that it forwards is known here: pages are reserved for it, nothing else.
// The next call either takes it over or, after a stop or for a mask, forgets it.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/forward.h"
#include "engine/sampler.h"
#include "engine/session.h"

namespace gptoss {

struct GenerateOptions {
  SamplingOptions sampling;
  std::vector<std::int32_t> stop_tokens;       // returned as the last token
  std::optional<std::int64_t> max_new_tokens;  // none: until the session is full
};

enum class FinishReason {
  kNone,    // more to come
  kStop,    // a stop token
  kLength,  // max_new_tokens, or the session is full
  kClosed,  // closed before its end
};

class Generation {
 public:
  // Checks everything that can be checked before anything is forwarded. An empty prompt continues
  // what the session holds.
  Generation(std::shared_ptr<Session> session, std::vector<std::int32_t> prompt,
             GenerateOptions options);
  ~Generation() { close(); }
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // The next token, or none when finished. After an exception it may be called again: what was
  // forwarded is kept, so that another mask can be tried.
  std::optional<SampledToken> next(const TokenMask* mask = nullptr, const CancelCheck& cancel = {});
  // The next token of each generation, in common steps: what `next` gives them, without
  // log-probabilities; none for those that are finished. The sessions are different ones of one
  // model. If one fails the others have their tokens, and what it threw is thrown at the end.
  static std::vector<std::optional<std::int32_t>> next_of_all(
      std::span<Generation* const> generations, const CancelCheck& cancel = {});
  void close() noexcept;

  FinishReason finish_reason() const { return finish_reason_; }
  std::int64_t num_generated() const { return num_generated_; }
  std::uint64_t seed() const { return sampler_.seed(); }

 private:
  static Sampler make_sampler(Session& session, std::span<const std::int32_t> prompt,
                              const GenerateOptions& options);
  // The next token: from logits in host memory, or drawn by the backend.
  SampledToken sample(SessionUse& use, const TokenMask* mask, const CancelCheck& cancel);
  SampledToken draw(SessionUse& use, const DrawOptions& options, const CancelCheck& cancel);
  void run_ahead(SessionUse& use, DrawId draw);
  void forget_ahead(SessionUse& use) noexcept;
  // Takes over the step that was queued ahead; its draw.
  DrawId take_ahead(SessionUse& use) noexcept;
  bool is_last(const SessionUse& use) const;
  SampledToken wait_draw(SessionUse& use, DrawId draw);
  void forward_next(SessionUse& use, const CancelCheck& cancel, ForwardJob job);
  // Around a forward of what the session lacks.
  void begin_forward(SessionUse& use);
  void end_forward(SessionUse& use);
  // The token becomes the session's last.
  void take(SessionUse& use, std::int32_t token);
  struct Shared;
  static void queue_all(std::deque<Shared>& all, const CancelCheck& cancel);
  void finish(FinishReason reason) noexcept;
  void check_not_moved(const SessionUse& use) const;

  const std::shared_ptr<Session> session_;
  std::shared_ptr<ModelCore> core_;  // while the generation is registered with its scheduler
  std::vector<std::int32_t> prompt_;
  const GenerateOptions options_;
  Sampler sampler_;
  std::vector<float> logits_;    // [vocab] once they come to the host, empty before
  bool has_logits_ = false;      // of the session's last token
  std::optional<DrawId> ahead_;  // of the next token, its step queued
  bool started_ = false;
  std::uint64_t version_ = 0;  // of the session, as this generation left it
  std::int64_t num_generated_ = 0;
  FinishReason finish_reason_ = FinishReason::kNone;
};

}  // namespace gptoss
