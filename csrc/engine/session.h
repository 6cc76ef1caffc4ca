// One sequence of tokens and its keys and values.
//
// A session holds the exact tokens it was given or sampled. The cache may be behind them: the last
// sampled token, and what lies after the mark that a rewind went back to, are forwarded first the
// next time. Every call either succeeds or leaves the session as it was before the call.
//
// Threads: one call at a time; a second is an InvalidArgument. `tokens`, `position` and the other
// plain readers may be called any time from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/fork_local.h"
#include "engine/kv_sequence.h"
#include "engine/model.h"

namespace gptoss {

// Called in the caller's own thread before each chunk of work; throws to cancel.
using CancelCheck = std::function<void()>;

class Session {
  struct Key {};

 public:
  static std::shared_ptr<Session> create(std::shared_ptr<ModelCore> core, std::int64_t max_tokens);
  Session(Key, std::shared_ptr<ModelCore> core, std::int64_t max_tokens);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  std::vector<std::int32_t> tokens() const;
  // Tokens held, and how many of them have keys and values.
  std::int64_t position() const;
  std::int64_t cached() const;
  std::int64_t max_tokens() const { return max_tokens_; }
  std::int64_t vocab_size() const { return vocab_size_; }
  bool closed() const;
  std::vector<std::int64_t> marks() const;

  // Appends tokens. out: [rows][vocab] float32, no row, the last token's, or one each token.
  // No tokens at all is fine while some wait to be forwarded (not with kAll).
  void forward(std::span<const std::int32_t> tokens, LogitsWanted logits, float* out,
               const CancelCheck& cancel = {});
  // Tests only: expert ids [num_layers][tokens][experts_per_token] in place of the router's. The
  // tokens must fit one chunk, and none may wait.
  void forward_forced(std::span<const std::int32_t> tokens, std::span<const std::int32_t> experts,
                      float* out);

  // Log-probability of tokens[1:], each given the session's tokens and those before it. The session
  // stays as it is.
  std::vector<float> score(std::span<const std::int32_t> tokens, const CancelCheck& cancel = {});

  // A session of its own that shares pages until either writes.
  std::shared_ptr<Session> fork();
  // Keeps the first `position` tokens. Returns how many of them the next call forwards again: 0
  // when the window pages are still held by the session or a mark.
  std::int64_t rewind(std::int64_t position);
  // Makes the cached position one that rewind reaches for free; returns it. At most 16 are kept.
  std::int64_t mark();
  // Releases everything. Closing twice is fine.
  void close();

 private:
  friend class SessionUse;
  friend class Generation;
  friend struct SessionFile;
  void publish() noexcept;  // what plain readers see of the sequence

  mutable ForkMutex state_mutex_;    // against plain readers in other threads
  std::shared_ptr<ModelCore> core_;  // null when closed
  const std::int64_t max_tokens_;
  const std::int64_t vocab_size_;
  std::vector<std::int32_t> tokens_;
  std::optional<KvSequence> sequence_;  // none when closed
  // Of the sequence, for plain readers.
  std::int64_t cached_ = 0;
  std::int64_t mark_positions_[KvSequence::kMaxMarks] = {};
  std::size_t num_marks_ = 0;
  std::uint64_t version_ = 0;  // grows with every change
  std::atomic<bool> in_use_{false};
};

// The right to change a session, held for the length of a call.
class SessionUse {
 public:
  // Throws InvalidArgument when the session is closed, its model is, or another call is under way.
  SessionUse(Session& session, const char* op);
  ~SessionUse();
  SessionUse(const SessionUse&) = delete;
  SessionUse& operator=(const SessionUse&) = delete;

  Session& session() const { return session_; }
  ModelCore& core() const { return *session_.core_; }
  KvSequence& sequence() const { return *session_.sequence_; }
  const std::vector<std::int32_t>& tokens() const { return session_.tokens_; }
  std::int64_t position() const { return static_cast<std::int64_t>(session_.tokens_.size()); }
  std::span<const std::int32_t> pending() const {
    return std::span(session_.tokens_)
        .subspan(static_cast<std::size_t>(session_.sequence_->length()));
  }
  // Makes room first, so that the change itself cannot fail.
  void reserve_tokens(std::int64_t more);
  void append(std::span<const std::int32_t> tokens) noexcept;
  void truncate(std::int64_t position) noexcept;

 private:
  Session& session_;
};

}  // namespace gptoss
