#include "engine/forward.h"

#include <algorithm>
#include <deque>
#include <optional>

#include "base/error.h"

namespace gptoss {
namespace {

// What a job still has to forward, cut into pieces with one kind of logits each.
struct Feed {
  ForwardJob* job;
  std::vector<std::int32_t> tokens;  // those waiting, then the new ones
  std::int64_t num_waiting;
  std::int64_t done = 0;
  float* out;
  std::optional<KvSnapshot> before = std::nullopt;  // to go back to when several steps are needed

  std::int64_t left() const { return static_cast<std::int64_t>(tokens.size()) - done; }

  // The next step's part, at most `room` tokens. With kAll, waiting tokens go on their own: their
  // logits are not asked for.
  StepEntry take(std::int64_t room) {
    std::int64_t count = std::min(room, left());
    LogitsWanted logits = LogitsWanted::kNone;
    if (job->logits == LogitsWanted::kAll) {
      if (done < num_waiting) {
        count = std::min(count, num_waiting - done);
      } else {
        logits = LogitsWanted::kAll;
      }
    } else if (count == left()) {
      logits = job->logits;
    }
    const std::span<const std::int32_t> part(tokens.data() + done, static_cast<std::size_t>(count));
    return {&job->use->sequence(), part, logits, out, job->draw, job->drawn};
  }
};

std::vector<Feed> make_feeds(std::span<ForwardJob> jobs, const ForwardOptions& options) {
  std::vector<Feed> feeds;
  for (ForwardJob& job : jobs) {
    check_tokens(*job.use, job.tokens, options.op);
    const std::span<const std::int32_t> waiting = job.use->pending();
    const bool something =
        !job.tokens.empty() || (!waiting.empty() && job.logits != LogitsWanted::kAll);
    GPTOSS_REQUIRE(InvalidArgument, something, "[", options.op,
                   "] expected at least one token, got none; give the tokens to append");
    Feed feed{.job = &job,
              .tokens = {waiting.begin(), waiting.end()},
              .num_waiting = static_cast<std::int64_t>(waiting.size()),
              .out = job.out};
    feed.tokens.insert(feed.tokens.end(), job.tokens.begin(), job.tokens.end());
    job.use->reserve_tokens(static_cast<std::int64_t>(job.tokens.size()));
    feeds.push_back(std::move(feed));
  }
  return feeds;
}

bool fits_one_step(const std::vector<Feed>& feeds, std::int64_t max_tokens) {
  std::int64_t total = 0;
  for (const Feed& feed : feeds) {
    if (feed.job->logits == LogitsWanted::kAll && feed.num_waiting > 0) return false;
    total += feed.left();
  }
  return total <= max_tokens;
}

// One step; false when nothing was left.
bool run_step(ModelCore& core, std::vector<Feed>& feeds, const ForwardOptions& options) {
  std::vector<StepEntry> entries;
  std::vector<Feed*> taken;
  std::int64_t room = core.max_batch_tokens;
  for (Feed& feed : feeds) {
    if (feed.left() == 0 || room == 0) continue;
    entries.push_back(feed.take(room));
    taken.push_back(&feed);
    room -= static_cast<std::int64_t>(entries.back().tokens.size());
  }
  if (entries.empty()) return false;
  if (options.cancel != nullptr && *options.cancel) (*options.cancel)();
  core.scheduler.run({entries, options.generation, options.forced_experts});
  for (std::size_t i = 0; i < entries.size(); ++i) {
    taken[i]->done += static_cast<std::int64_t>(entries[i].tokens.size());
    if (taken[i]->out != nullptr) {
      taken[i]->out += entries[i].num_logit_rows() * core.config.vocab_size;
    }
  }
  return true;
}

}  // namespace

void check_tokens(const SessionUse& use, std::span<const std::int32_t> tokens, const char* op) {
  Session& session = use.session();
  const std::int64_t vocab = session.vocab_size();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    GPTOSS_REQUIRE(InvalidArgument, tokens[i] >= 0 && tokens[i] < vocab, "[", op,
                   "] expected ids in [0, ", vocab, "), got ", tokens[i], " at index ", i, " of ",
                   tokens.size(), " tokens; were they made with this model's tokenizer?");
  }
  const std::int64_t held = use.position();
  const std::int64_t more = static_cast<std::int64_t>(tokens.size());
  GPTOSS_REQUIRE(InvalidArgument, more <= session.max_tokens() - held, "[", op,
                 "] expected at most ", session.max_tokens() - held, " more tokens (", held, " of ",
                 session.max_tokens(), " are held), got ", more,
                 "; rewind, shorten the input or make a session with a larger max_tokens");
}

void run_forward(std::span<ForwardJob> jobs, const ForwardOptions& options) {
  if (jobs.empty()) return;
  ModelCore& core = jobs.front().use->core();
  std::vector<Feed> feeds = make_feeds(jobs, options);
  const bool one_step = fits_one_step(feeds, core.max_batch_tokens);
  GPTOSS_REQUIRE(InvalidArgument, options.forced_experts == nullptr || one_step, "[", options.op,
                 "] expected at most ", core.max_batch_tokens,
                 " tokens and none waiting with forced experts, got more; forward less at once");
  std::int64_t num_tokens = 0;
  for (Feed& feed : feeds) {
    num_tokens += feed.left();
    if (!one_step) feed.before.emplace(feed.job->use->sequence().snapshot(PageHolder::kSession));
  }
  if (num_tokens > static_cast<std::int64_t>(jobs.size())) core.check_files();
  try {
    while (run_step(core, feeds, options)) {
    }
  } catch (...) {
    for (Feed& feed : feeds) {
      if (feed.before) feed.job->use->sequence().restore(std::move(*feed.before));
    }
    throw;
  }
  for (ForwardJob& job : jobs) job.use->append(job.tokens);
}

void forward_batch(std::span<const BatchItem> items, const CancelCheck& cancel) {
  std::deque<SessionUse> uses;
  std::vector<ForwardJob> jobs;
  for (const BatchItem& item : items) {
    for (const ForwardJob& job : jobs) {
      GPTOSS_REQUIRE(InvalidArgument, &job.use->session() != item.session.get(),
                     "[forward_batch] expected every session once, entry ", jobs.size(),
                     " repeats one; join its tokens or fork it");
    }
    SessionUse& use = uses.emplace_back(*item.session, "forward_batch");
    GPTOSS_REQUIRE(InvalidArgument, &use.core() == &uses.front().core(),
                   "[forward_batch] expected sessions of one model, entry ", jobs.size(),
                   " belongs to another; forward it in a call of its own");
    jobs.push_back({&use, item.tokens, item.logits, item.out});
  }
  run_forward(jobs, {.op = "forward_batch", .cancel = &cancel});
}

}  // namespace gptoss
