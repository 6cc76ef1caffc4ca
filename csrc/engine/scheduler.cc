#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/error.h"

namespace gptoss {
namespace {

// Long enough for a thread that was just woken to sample and come back, short against any step.
constexpr std::chrono::microseconds kGatherTime{100};
// Rows of many callers are copied from a common buffer; what one large step needed is not kept.
constexpr std::size_t kLogitsBytesKept = std::size_t{64} << 20;

}  // namespace

// One waiting thread; lives on that thread's stack.
struct Scheduler::Caller {
  explicit Caller(const Step& step) : step(step), num_tokens(step.num_tokens()) {}

  const Step& step;
  const std::int64_t num_tokens;
  std::condition_variable wake;
  bool leads = false;
  bool done = false;
  std::exception_ptr error;
  Caller* next_in_batch = nullptr;
};

Scheduler::Generation* Scheduler::find(State& state, const void* id) {
  if (id == nullptr) return nullptr;
  for (Generation& generation : state.generations) {
    if (generation.id == id) return &generation;
  }
  return nullptr;
}

void Scheduler::register_generation(const void* generation) {
  State& state = state_.get();
  const std::lock_guard lock(state.mutex);
  if (find(state, generation) == nullptr) state.generations.push_back({generation, false, false});
}

void Scheduler::unregister_generation(const void* generation) noexcept {
  State& state = state_.get();
  const std::lock_guard lock(state.mutex);
  std::erase_if(state.generations, [&](const Generation& g) { return g.id == generation; });
  state.arrived.notify_one();
}

void Scheduler::run(const Step& step) {
  State& state = state_.get();
  Caller self(step);
  std::unique_lock lock(state.mutex);
  state.queue.push_back(&self);
  if (Generation* generation = find(state, step.generation)) generation->queued = true;
  if (!state.has_leader) {
    state.has_leader = true;
  } else {
    state.arrived.notify_one();
    self.wake.wait(lock, [&] { return self.done || self.leads; });
  }
  if (!self.done) lead(state, self, lock);
  lock.unlock();
  if (self.error) std::rethrow_exception(self.error);
}

// The leader is at the front of the queue: it is either alone there or was handed the lead.
void Scheduler::lead(State& state, Caller& self, std::unique_lock<std::mutex>& lock) {
  gather(state, self, lock);
  Caller* const batch = take_batch(state);
  lock.unlock();
  execute(batch);
  lock.lock();
  for (Caller* caller = batch; caller != nullptr;) {
    Caller* const next = caller->next_in_batch;  // the caller may be gone once it is told
    caller->done = true;
    if (caller != &self) caller->wake.notify_one();
    caller = next;
  }
  if (state.queue.empty()) {
    state.has_leader = false;
  } else {
    state.queue.front()->leads = true;
    state.queue.front()->wake.notify_one();
  }
}

void Scheduler::gather(State& state, const Caller& self, std::unique_lock<std::mutex>& lock) {
  if (self.step.forced_experts != nullptr || self.num_tokens >= max_batch_tokens_) return;
  const auto all_here = [&] {
    return std::none_of(state.generations.begin(), state.generations.end(),
                        [](const Generation& g) { return g.in_last_step && !g.queued; });
  };
  // While the device works on what was queued before, waiting costs nothing.
  while (!all_here()) {
    const bool was_idle = backend_.idle();
    state.arrived.wait_until(lock, std::chrono::steady_clock::now() + kGatherTime, all_here);
    if (was_idle) return;
  }
}

// The front of the queue and, in order, whoever still fits.
Scheduler::Caller* Scheduler::take_batch(State& state) {
  for (Generation& generation : state.generations) generation.in_last_step = false;
  Caller* first = nullptr;
  Caller* last = nullptr;
  std::int64_t room = max_batch_tokens_;
  for (auto at = state.queue.begin(); at != state.queue.end();) {
    Caller* const caller = *at;
    const bool alone = caller->step.forced_experts != nullptr;
    if (first != nullptr && (alone || caller->num_tokens > room)) {
      ++at;
      continue;
    }
    room -= caller->num_tokens;
    (first == nullptr ? first : last->next_in_batch) = caller;
    last = caller;
    if (Generation* generation = find(state, caller->step.generation)) {
      generation->in_last_step = true;
      generation->queued = false;
    }
    at = state.queue.erase(at);
    if (alone) break;
  }
  return first;
}

// Pages of every entry, or of none.
bool Scheduler::reserve(Caller& caller) noexcept {
  try {
    for (StepEntry& entry : caller.step.entries) {
      entry.sequence->reserve(static_cast<std::int64_t>(entry.tokens.size()));
    }
    return true;
  } catch (...) {
    caller.error = std::current_exception();
    for (StepEntry& entry : caller.step.entries) entry.sequence->unreserve();
    return false;
  }
}

void Scheduler::execute(Caller* batch) noexcept {
  const std::lock_guard lock(backend_mutex_);
  for (Caller* caller = batch; caller != nullptr; caller = caller->next_in_batch) reserve(*caller);
  try {
    forward(batch);
  } catch (...) {
    for (Caller* caller = batch; caller != nullptr; caller = caller->next_in_batch) {
      if (caller->error) continue;
      caller->error = std::current_exception();
      for (StepEntry& entry : caller->step.entries) entry.sequence->unreserve();
    }
  }
  if (logits_.num_bytes() > kLogitsBytesKept) logits_ = AlignedBuffer();
  pool_.trim();
}

// Forwards what has been reserved. Everything that can throw comes before the first advance.
void Scheduler::forward(Caller* batch) {
  segments_.clear();
  Batch input;
  float* direct = nullptr;  // rows may go straight to the callers' memory if they follow each other
  bool contiguous = true;
  std::int64_t rows = 0;
  for (const Caller* caller = batch; caller != nullptr; caller = caller->next_in_batch) {
    if (caller->error) continue;
    input.forced_experts = caller->step.forced_experts;
    for (const StepEntry& entry : caller->step.entries) {
      Segment& segment = segments_.emplace_back();
      segment.tokens = entry.tokens;
      segment.logits = entry.logits;
      segment.draw = entry.draw;
      entry.sequence->fill(segment);
      if (entry.num_logit_rows() == 0) continue;
      if (direct == nullptr) direct = entry.out;
      contiguous = contiguous && entry.out == direct + rows * vocab_size_;
      rows += entry.num_logit_rows();
    }
  }
  if (segments_.empty()) return;
  if (!contiguous) {
    logits_.ensure(static_cast<std::size_t>(rows * vocab_size_) * sizeof(float),
                   "logits of a step");
  }
  input.segments = segments_;
  input.logits = contiguous ? direct : logits_.as<float>();
  draws_.resize(segments_.size());
  input.draws = draws_.data();
  backend_.forward(input);
  grow(batch, contiguous ? nullptr : input.logits);
}

// After a step: its results to the callers (`rows` null: they have their logits), and the sequences
// longer.
void Scheduler::grow(Caller* batch, const float* rows) noexcept {
  std::size_t draw = 0;
  for (const Caller* caller = batch; caller != nullptr; caller = caller->next_in_batch) {
    if (caller->error) continue;
    for (const StepEntry& entry : caller->step.entries) {
      const std::int64_t size = entry.num_logit_rows() * vocab_size_;
      if (rows != nullptr && size > 0) {
        std::memcpy(entry.out, rows, static_cast<std::size_t>(size) * sizeof(float));
        rows += size;
      }
      if (entry.logits == LogitsWanted::kDraw) *entry.drawn = draws_[draw++];
      if (!entry.ahead) entry.sequence->advance(static_cast<std::int64_t>(entry.tokens.size()));
    }
  }
}

void Scheduler::trim_if_idle() noexcept {
  if (!backend_mutex_.try_lock()) return;
  pool_.trim();
  backend_mutex_.unlock();
}

}  // namespace gptoss
