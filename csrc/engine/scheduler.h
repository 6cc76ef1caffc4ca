// Scheduling by combining: calls that come at the same time share one step of the backend.
//
// A single caller runs its step in its own thread, with no queue to wait in and no hand-over. When
// several threads call, the first leads: it forwards one batch for itself and for those who wait,
// then hands the lead to the longest waiting. Generations register themselves, and a leader waits a
// bounded moment for those of the step before; otherwise two threads would alternate batches of one
// for ever.
//
// Threads: every member may be called from any thread. After a fork the child starts fresh.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "engine/fork_local.h"
#include "engine/kv_sequence.h"
#include "engine/page_pool.h"

namespace gptoss {

// One sequence's part of a step. Nobody else touches the sequence meanwhile.
struct StepEntry {
  KvSequence* sequence = nullptr;
  std::span<const std::int32_t> tokens;
  LogitsWanted logits = LogitsWanted::kNone;
  float* out = nullptr;  // [number of rows wanted][vocab]
  // With kDraw: how, and out: which draw it is.
  const DrawOptions* draw = nullptr;
  DrawId* drawn = nullptr;
  // A step that may turn out not to be wanted: the sequence does not grow, only its pages are
  // reserved. Its owner calls `advance` later, or forgets it.
  bool ahead = false;

  std::int64_t num_logit_rows() const {
    return logits == LogitsWanted::kAll    ? static_cast<std::int64_t>(tokens.size())
           : logits == LogitsWanted::kLast ? 1
                                           : 0;
  }
};

// What one caller wants forwarded together; at most max_batch_tokens tokens.
struct Step {
  std::span<StepEntry> entries;
  const void* generation = nullptr;              // a registered one, or null
  const std::int32_t* forced_experts = nullptr;  // Batch::forced_experts; such a step runs alone

  std::int64_t num_tokens() const {
    std::int64_t total = 0;
    for (const StepEntry& entry : entries) total += static_cast<std::int64_t>(entry.tokens.size());
    return total;
  }
};

class Scheduler {
 public:
  Scheduler(Backend& backend, PagePool& pool, std::int64_t vocab_size)
      : backend_(backend),
        pool_(pool),
        vocab_size_(vocab_size),
        max_batch_tokens_(backend.max_batch_tokens()) {}

  // Forwards the step; the sequences have grown on return. Throws what page reservation (of this
  // step) or the backend (of the whole batch) threw; the step's sequences are as before then.
  void run(const Step& step);

  void register_generation(const void* generation);
  void unregister_generation(const void* generation) noexcept;

  // Runs `body(Backend&)` while no step runs.
  template <typename Body>
  auto with_backend(Body&& body) {
    const std::lock_guard lock(backend_mutex_);
    pool_.trim();
    return body(backend_);
  }
  // Gives surplus pages back now if no step runs; otherwise the step does at its end.
  void trim_if_idle() noexcept;

 private:
  struct Caller;
  struct Generation {
    const void* id;
    bool in_last_step;
    bool queued;
  };
  struct State {
    std::mutex mutex;
    std::deque<Caller*> queue;
    std::vector<Generation> generations;
    std::condition_variable arrived;  // the gathering leader listens
    bool has_leader = false;
  };

  void lead(State& state, Caller& self, std::unique_lock<std::mutex>& lock);
  void gather(State& state, const Caller& self, std::unique_lock<std::mutex>& lock);
  Caller* take_batch(State& state);
  void execute(Caller* batch) noexcept;
  void forward(Caller* batch);
  void grow(Caller* batch, const float* rows) noexcept;
  static bool reserve(Caller& caller) noexcept;
  static Generation* find(State& state, const void* id);

  Backend& backend_;
  PagePool& pool_;
  const std::int64_t vocab_size_;
  const std::int64_t max_batch_tokens_;
  ForkLocal<State> state_;
  ForkMutex backend_mutex_;
  // Under backend_mutex_.
  std::vector<Segment> segments_;
  std::vector<DrawId> draws_;
  AlignedBuffer logits_;
};

}  // namespace gptoss
