// The CPU backend: one parallel region a step, in which every thread walks the layers and the
// phases of a layer are separated by barriers. backend.cc has the walk, attention_block.cc and
// moe_block.cc the two halves of a layer.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "cpu/attention_plan.h"
#include "cpu/dense_weights.h"
#include "cpu/kernel_table.h"
#include "cpu/kv_storage.h"
#include "cpu/workspace.h"
#include "model/yarn.h"

namespace gptoss::cpu {

// Rows a thread takes at a time where tokens are many and threads may be disturbed.
constexpr std::int64_t kRowGrain = 64;
constexpr std::int64_t kTokenGrain = 16;

// How a product of many tokens is cut: into units of some tokens and some rows.
struct ProductUnits {
  std::int64_t num_tokens;
  std::int64_t tokens;  // of a unit
  std::int64_t num_rows;
  std::int64_t rows;
};

// A token's bytes give every thread enough to do between two barriers, or fewer threads are faster.
int most_useful_threads(const ModelConfig& config);

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelConfig& config, const MappedCheckpoint& checkpoint,
             const BackendOptions& options)
      : config_(config),
        weights_(checkpoint.weights),
        float32_(options.precision == Precision::kFloat32),
        kernels_(kernels_for(options.isa.value_or(default_isa()))),
        pool_(options.num_threads > 0 ? options.num_threads
                                      : default_num_threads(most_useful_threads(config))),
        plan_(config, float32_ ? KvDtype::kFloat32 : KvDtype::kBf16),
        storage_(plan_),
        yarn_(config),
        dense_(weights_, options.dense == DenseFormat::kInt8, float32_, kernels_, pool_),
        int8_dense_(options.dense == DenseFormat::kInt8),
        counters_(static_cast<std::size_t>(config.num_layers) * kNumCounters + 1) {}

  std::string describe() const override {
    return cat("cpu ", isa_name(kernels_.isa), ", ", pool_.num_threads(),
               pool_.num_threads() == 1 ? " thread" : " threads");
  }
  const KvPlan& kv_plan() const override { return plan_; }
  int num_threads() const override { return pool_.num_threads(); }
  std::int64_t max_batch_tokens() const override { return kernels_.max_batch_tokens; }

  PageId allocate_page(KvGroup group) override { return storage_.allocate(group); }
  void free_page(KvGroup group, PageId page) noexcept override { storage_.free(group, page); }
  void copy_page(KvGroup group, PageId from, PageId to) override {
    std::ranges::copy(storage_.page(group, from), storage_.page(group, to).begin());
  }
  void read_page(KvGroup group, PageId page, std::span<std::byte> out) override {
    std::ranges::copy(storage_.page(group, page), out.begin());
  }
  void write_page(KvGroup group, PageId page, std::span<const std::byte> in) override {
    std::ranges::copy(in, storage_.page(group, page).begin());
  }

  void forward(const Batch& batch) override;

  BackendMemory memory() const override {
    return {dense_.packed.num_bytes(), storage_.num_bytes(), space_.num_bytes()};
  }
  Trace& trace() override { return trace_; }

 private:
  // One counter a layer for each phase whose work is shared unevenly.
  enum Phase { kQkv, kQueries, kAttention, kMerge, kOut, kGateUp, kDown, kNumCounters };
  WorkCounter& counter(std::size_t layer, Phase phase) {
    return counters_[layer * kNumCounters + phase];
  }

  struct Step;  // one thread's view of a step
  struct Projection {
    const DenseMatrix& matrix;
    MatrixView<float> out;
  };

  void prepare(const Batch& batch);
  void run_layers(const Batch& batch, Worker& worker);
  void attention_block(const Batch& batch, std::size_t layer, Step& step);
  void last_attention_block(const Batch& batch, std::size_t layer, Step& step);
  void prepare_wanted(const Batch& batch);
  void keep_wanted_rows();
  void project(std::span<const Projection> parts, const Activations& x, WorkCounter& counter,
               Step& step);
  void rotate(MatrixView<float> x, std::int64_t num_heads, Step& step);
  void write_keys_and_values(const Batch& batch, std::size_t layer, Step& step);
  void attend(const Batch& batch, std::size_t layer, Step& step);
  void attention(const Batch& batch, std::size_t layer, Step& step);
  void moe_block(const Batch& batch, std::size_t layer, Step& step);
  void gate_up(std::size_t layer, const Activations& x, const Routing& routing, Step& step);
  void gate_up_unit(const LayerWeights& w, const Activations& x, const MoePlan& plan,
                    std::int32_t expert, Range rows, ThreadSpace& space);
  void down(std::size_t layer, const Routing& routing, Step& step);
  void down_unit(const LayerWeights& w, const MoePlan& plan, std::int32_t expert, Range rows,
                 ThreadSpace& space);
  void logits(const Batch& batch, Step& step);
  const Routing& route(const Batch& batch, std::size_t layer, Step& step);
  Activations normalised(const bf16* scale, ActivationForms wanted, Step& step);
  void quantise(const ActivationBuffer& buffer, ActivationForms wanted, Range rows) const {
    quantise(buffer, wanted, rows, {0, buffer.values().cols / kMxBlock});
  }
  void quantise(const ActivationBuffer& buffer, ActivationForms wanted, Range rows,
                Range blocks) const;
  // What expert products and dense ones want.
  ActivationForms expert_forms() const {
    return float32_ ? ActivationForms{} : kernels_.expert_forms;
  }
  ActivationForms dense_forms() const {
    return int8_dense_ ? kernels_.int8_forms : ActivationForms{};
  }
  // Rows of a product that a thread takes at a time where tokens are many: as many as the kernels
  // like, if every thread then takes some eight times.
  std::int64_t unit_rows(std::int64_t total, std::int64_t least, std::int64_t most) const {
    const std::int64_t share = total / (8 * pool_.num_threads()) / kRowGrain * kRowGrain;
    return std::clamp(share, least, most);
  }
  ProductUnits dense_units(std::int64_t num_tokens, std::int64_t num_rows) const {
    const std::int64_t groups =
        (num_tokens + kernels_.dense_unit_tokens - 1) / kernels_.dense_unit_tokens;
    const std::int64_t tokens = (num_tokens + groups - 1) / groups;
    return {.num_tokens = num_tokens,
            .tokens = (tokens + kTokenGrain - 1) / kTokenGrain * kTokenGrain,
            .num_rows = num_rows,
            .rows = unit_rows(groups * num_rows, kRowGrain, kernels_.dense_unit_rows)};
  }
  std::int64_t expert_unit_rows() const {
    return unit_rows(config_.num_experts * 2 * config_.intermediate_size, kExpertUnitRowsMin,
                     kernels_.expert_unit_rows);
  }

  const ModelConfig& config_;
  const Weights& weights_;
  const bool float32_;
  const KernelTable& kernels_;
  ThreadPool pool_;
  KvPlan plan_;
  KvStorage storage_;
  Yarn yarn_;
  DenseWeights dense_;
  const bool int8_dense_;
  Workspace space_;
  AttentionPlan attention_plan_;
  std::vector<std::int64_t> logit_rows_;  // rows of the batch whose logits are wanted
  // After the last layer's keys and values only those rows go on, as a batch of their own; unless
  // they are all.
  bool is_narrowed_ = false;
  std::vector<Segment> wanted_segments_;
  Batch wanted_;
  AttentionPlan wanted_plan_;
  std::vector<WorkCounter> counters_;
  Trace trace_;
};

struct CpuBackend::Step {
  Worker& worker;
  ThreadSpace& space;
  std::int64_t num_tokens;
  AttentionPlan* plan;
  Zone& zone;

  bool redundant() const { return num_tokens <= kRedundantTokens; }
  Range tokens() const { return {0, num_tokens}; }
  void barrier() {
    if (worker.count() > 1) zone.wait([&] { worker.barrier(); });
  }
};

// Takes parts of a product: an equal share of the rows where tokens are few and every thread
// streams its part of the weights once, units from a counter otherwise. (A last eighth from a
// counter in the first case makes threads wait half as long for each other, and its short streams
// eat that up.)
template <typename Body>
void for_units(Worker& worker, WorkCounter& counter, bool few_tokens, const ProductUnits& units,
               Body&& body) {
  const Range all{0, units.num_tokens};
  if (few_tokens) {
    const Range rows = worker.share(units.num_rows, kRowGrain);
    if (rows.size() > 0) body(all, rows);
    return;
  }
  const std::int64_t groups = (units.num_tokens + units.tokens - 1) / units.tokens;
  const std::int64_t parts = (units.num_rows + units.rows - 1) / units.rows;
  for (;;) {
    const Range unit = counter.take(parts * groups, 1);
    if (unit.size() == 0) return;
    const std::int64_t token = unit.begin % groups * units.tokens;
    const std::int64_t row = unit.begin / groups * units.rows;
    body(Range{token, std::min(token + units.tokens, units.num_tokens)},
         Range{row, std::min(row + units.rows, units.num_rows)});
  }
}

}  // namespace gptoss::cpu
