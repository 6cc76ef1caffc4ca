// A loaded model: configuration, mapped checkpoint, backend, pages and scheduler, shared by its
// sessions.
//
// Threads: every member may be called from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/fork_local.h"
#include "engine/page_pool.h"
#include "engine/scheduler.h"
#include "model/checkpoint.h"
#include "model/model_config.h"

namespace gptoss {

class Session;

using BackendFactory = std::function<std::unique_ptr<Backend>(
    const ModelConfig&, const MappedCheckpoint&, const BackendOptions&)>;

// What sessions share. Lives as long as the model is open or a session is.
struct ModelCore {
  ModelCore(ModelConfig config, MappedCheckpoint checkpoint, const BackendOptions& options,
            const BackendFactory& factory);

  // Throws InvalidArgument when the model was closed, CheckpointError when a mapped file shrank.
  void check_open(const char* op) const;
  void check_files() const { checkpoint.check_files(); }

  const ModelConfig config;
  const MappedCheckpoint checkpoint;
  const BackendOptions options;
  const std::unique_ptr<Backend> backend;  // used by the scheduler alone
  const KvPlan kv_plan;
  const std::int64_t max_batch_tokens;
  // Tells models apart whose saved sessions must not be mixed: config, numerics, small weights.
  const std::uint64_t fingerprint;
  PagePool pool;
  Scheduler scheduler;
  std::atomic<bool> closed{false};
  std::atomic<std::int64_t> num_sessions{0};

  using TokenIds = std::shared_ptr<const std::vector<std::int32_t>>;
  TokenIds banned_tokens() const;
  void set_banned_tokens(std::vector<std::int32_t> tokens);

 private:
  mutable ForkMutex banned_mutex_;
  TokenIds banned_;
};

struct MemoryReport {
  std::size_t weights_bytes = 0;                // private copies
  std::size_t mapped_bytes = 0;                 // checkpoint files, shared with the page cache
  std::size_t kv_bytes[kNumKvGroups] = {0, 0};  // pages allocated, by group
  std::size_t kv_free_bytes = 0;                // of those, kept for the next allocation
  std::size_t marks_bytes = 0;                  // of those, held by marks alone
  std::size_t workspace_bytes = 0;
  std::int64_t num_sessions = 0;
};

class Model {
 public:
  Model(ModelConfig config, MappedCheckpoint checkpoint, const BackendOptions& options,
        const BackendFactory& factory);

  // max_tokens: most tokens the session may hold; 0 for the model's whole context.
  std::shared_ptr<Session> session(std::int64_t max_tokens = 0) const;
  // What Session::save wrote. Throws CheckpointError for a damaged file, InvalidArgument for one
  // of another model.
  std::shared_ptr<Session> restore(const std::string& path) const;

  const ModelConfig& config() const { return config_; }
  std::string describe() const;
  MemoryReport memory() const;
  // Ids that no generation samples (reserved or nameless ones).
  void set_banned_tokens(std::vector<std::int32_t> tokens);
  void enable_trace(bool on) const;
  std::map<std::string, ZoneTotal> trace_totals() const;
  void clear_trace() const;

  // Later calls on the model and its sessions raise InvalidArgument; memory is freed when the last
  // session is closed or gone. Closing twice is fine.
  void close();
  bool closed() const;

  // Throws InvalidArgument when closed.
  std::shared_ptr<ModelCore> core(const char* op) const;

 private:
  const ModelConfig config_;
  mutable ForkMutex mutex_;
  std::shared_ptr<ModelCore> core_;
};

}  // namespace gptoss
