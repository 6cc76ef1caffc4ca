#include "engine/model.h"

#include <mutex>
#include <utility>

#include "base/error.h"
#include "engine/session.h"
#include "engine/session_file.h"

namespace gptoss {

ModelCore::ModelCore(ModelConfig model_config, MappedCheckpoint mapped,
                     const BackendOptions& backend_options, const BackendFactory& factory)
    : config(std::move(model_config)),
      checkpoint(std::move(mapped)),
      options(backend_options),
      backend(factory(config, checkpoint, options)),
      kv_plan(backend->kv_plan()),
      max_batch_tokens(backend->max_batch_tokens()),
      fingerprint(model_fingerprint(config, checkpoint, options, kv_plan)),
      pool(*backend),
      scheduler(*backend, pool, config.vocab_size) {}

void ModelCore::check_open(const char* op) const {
  GPTOSS_REQUIRE(InvalidArgument, !closed.load(std::memory_order_acquire), "[", op,
                 "] expected an open model, this one was closed; load it again");
}

ModelCore::TokenIds ModelCore::banned_tokens() const {
  const std::lock_guard lock(banned_mutex_);
  return banned_;
}

void ModelCore::set_banned_tokens(std::vector<std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    GPTOSS_REQUIRE(InvalidArgument, token >= 0 && token < config.vocab_size,
                   "[set_banned_tokens] expected ids in [0, ", config.vocab_size, "), got ", token,
                   "; does the tokenizer belong to this model?");
  }
  auto shared = std::make_shared<const std::vector<std::int32_t>>(std::move(tokens));
  const std::lock_guard lock(banned_mutex_);
  banned_ = std::move(shared);
}

Model::Model(ModelConfig config, MappedCheckpoint checkpoint, const BackendOptions& options,
             const BackendFactory& factory)
    : config_(config),
      core_(std::make_shared<ModelCore>(std::move(config), std::move(checkpoint), options,
                                        factory)) {}

std::shared_ptr<ModelCore> Model::core(const char* op) const {
  const std::lock_guard lock(mutex_);
  GPTOSS_REQUIRE(InvalidArgument, core_ != nullptr, "[", op,
                 "] expected an open model, this one was closed; load it again");
  return core_;
}

std::shared_ptr<Session> Model::session(std::int64_t max_tokens) const {
  return Session::create(core("session"), max_tokens);
}

std::shared_ptr<Session> Model::restore(const std::string& path) const {
  return restore_session(core("restore"), path);
}

std::string Model::describe() const {
  return core("describe")->scheduler.with_backend([](Backend& b) { return b.describe(); });
}

MemoryReport Model::memory() const {
  const std::shared_ptr<ModelCore> held = core("memory");
  MemoryReport report;
  held->scheduler.with_backend([&](Backend& backend) {
    const BackendMemory memory = backend.memory();
    report.weights_bytes = memory.weights_bytes;
    report.workspace_bytes = memory.workspace_bytes;
    for (int g = 0; g < kNumKvGroups; ++g) {
      const KvGroup group = static_cast<KvGroup>(g);
      const PageUsage usage = held->pool.usage(group);
      const std::size_t page_bytes = held->kv_plan.page_bytes(group);
      report.kv_bytes[g] = static_cast<std::size_t>(usage.allocated) * page_bytes;
      report.kv_free_bytes += static_cast<std::size_t>(usage.free) * page_bytes;
      report.marks_bytes += static_cast<std::size_t>(usage.only_marks) * page_bytes;
    }
  });
  for (const MappedFile& file : held->checkpoint.files) {
    report.mapped_bytes += static_cast<std::size_t>(file.num_bytes());
  }
  report.num_sessions = held->num_sessions.load();
  return report;
}

void Model::set_banned_tokens(std::vector<std::int32_t> tokens) {
  core("set_banned_tokens")->set_banned_tokens(std::move(tokens));
}

void Model::enable_trace(bool on) const {
  core("trace")->scheduler.with_backend([on](Backend& b) { b.trace().enable(on); });
}

std::map<std::string, ZoneTotal> Model::trace_totals() const {
  return core("trace")->scheduler.with_backend([](Backend& b) { return b.trace().totals(); });
}

void Model::clear_trace() const {
  core("trace")->scheduler.with_backend([](Backend& b) { b.trace().clear(); });
}

void Model::close() {
  std::shared_ptr<ModelCore> released;
  {
    const std::lock_guard lock(mutex_);
    released = std::move(core_);
    core_ = nullptr;
  }
  if (released != nullptr) released->closed.store(true, std::memory_order_release);
}

bool Model::closed() const {
  const std::lock_guard lock(mutex_);
  return core_ == nullptr;
}

}  // namespace gptoss
