// The walk through the layers on the CPU; reads side by side with cuda/backend.cc.
#include <algorithm>
#include <numeric>

#include "cpu/cpu_backend.h"

namespace gptoss::cpu {

int most_useful_threads(const ModelConfig& c) {
  // Six barriers a layer cost some 10 us with threads that spin; 2 MB are 100 us of one core.
  constexpr std::int64_t kBytesPerThread = std::int64_t{2} << 20;
  const std::int64_t dense = 2 * c.hidden_size * 2 * (c.q_size() + c.kv_size());
  const std::int64_t experts =
      c.experts_per_token * 3 * c.intermediate_size * c.hidden_size * 17 / kMxBlock;
  const std::int64_t token_bytes =
      c.num_layers * (dense + experts) + 2 * c.vocab_size * c.hidden_size;
  return static_cast<int>(
      std::clamp<std::int64_t>(token_bytes / kBytesPerThread, 1, ThreadPool::kMaxThreads));
}

void CpuBackend::forward(const Batch& batch) {
  prepare(batch);
  pool_.run([&](Worker& worker) { run_layers(batch, worker); });
}

void CpuBackend::prepare(const Batch& batch) {
  const std::int64_t num_tokens = batch.num_tokens();
  space_.ensure(config_, kernels_, dense_forms(), expert_forms(), expert_unit_rows(),
                pool_.num_threads(), num_tokens, batch.num_logit_rows());
  attention_plan_.build(batch, plan_, storage_, config_.num_heads, pool_.num_threads(),
                        {0, plan_.num_layers});
  for (WorkCounter& counter : counters_) counter.reset();
  logit_rows_.clear();
  std::int64_t row = 0;
  for (const Segment& segment : batch.segments) {
    const std::int64_t end = row + segment.num_tokens();
    std::ranges::copy(segment.tokens, space_.tokens.begin() + row);
    for (std::int64_t i = end - segment.num_logit_rows(); i < end; ++i) logit_rows_.push_back(i);
    for (std::int64_t i = row; i < end; ++i) {
      float* cos_sin = space_.cos_sin.row(i);
      yarn_.angles(segment.position + i - row, cos_sin, cos_sin + kHeadDim / 2);
    }
    row = end;
  }
  prepare_wanted(batch);
}

// The rows whose logits are wanted: the last ones of each segment.
void CpuBackend::prepare_wanted(const Batch& batch) {
  is_narrowed_ = batch.num_logit_rows() < batch.num_tokens() && batch.forced_experts == nullptr;
  if (!is_narrowed_) return;
  wanted_segments_.clear();
  for (const Segment& segment : batch.segments) {
    const std::int64_t skipped = segment.num_tokens() - segment.num_logit_rows();
    if (segment.num_logit_rows() == 0) continue;
    Segment wanted = segment;
    wanted.tokens = segment.tokens.subspan(static_cast<std::size_t>(skipped));
    wanted.position += skipped;
    wanted_segments_.push_back(wanted);
  }
  wanted_ = {.segments = wanted_segments_};
  wanted_plan_.build(wanted_, plan_, storage_, config_.num_heads, pool_.num_threads(),
                     {plan_.num_layers - 1, plan_.num_layers});
}

// By one thread between barriers: moves the wanted rows to the front, and leaves the others away.
void CpuBackend::keep_wanted_rows() {
  const auto keep = [&](MatrixView<float> view) {
    for (std::size_t i = 0; i < logit_rows_.size(); ++i) {
      std::copy_n(view.row(logit_rows_[i]), view.cols, view.row(static_cast<std::int64_t>(i)));
    }
  };
  keep(space_.residual);
  keep(space_.cos_sin);
  std::iota(logit_rows_.begin(), logit_rows_.end(), 0);
  space_.keep_rows(static_cast<std::int64_t>(logit_rows_.size()));
}

void CpuBackend::run_layers(const Batch& batch, Worker& worker) {
  Zone zone(worker.index() == 0 ? &trace_ : nullptr, "embed");
  Step step{worker, space_.threads[static_cast<std::size_t>(worker.index())], space_.residual.rows,
            &attention_plan_, zone};
  kernels_.embed({space_.tokens.data(), weights_.embedding, space_.residual},
                 worker.share(step.num_tokens));
  step.barrier();
  for (std::size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    if (is_narrowed_ && layer + 1 == weights_.layers.size()) {
      last_attention_block(batch, layer, step);
      if (step.num_tokens == 0) return;
    } else {
      attention_block(batch, layer, step);
    }
    moe_block(batch, layer, step);
  }
  logits(batch, step);
}

// RMSNorm of the residual rows: each thread for itself, or shared and a barrier.
Activations CpuBackend::normalised(const bf16* scale, ActivationForms wanted, Step& step) {
  const ActivationBuffer& buffer = step.redundant() ? step.space.norm : space_.norm;
  const Range mine = step.redundant() ? step.tokens() : step.worker.share(step.num_tokens);
  kernels_.rms_norm(
      {ActivationBuffer::as_const(space_.residual), scale, config_.rms_norm_eps, buffer.values()},
      mine);
  quantise(buffer, wanted, mine);
  if (!step.redundant()) step.barrier();
  return buffer.first_rows(step.num_tokens);  // a private buffer may be larger
}

void CpuBackend::quantise(const ActivationBuffer& buffer, ActivationForms wanted, Range rows,
                          Range blocks) const {
  const Activations x = buffer.activations();
  if (wanted.int8) kernels_.quantize_int8({x.values, x.int8}, rows, blocks);
  if (wanted.int15) kernels_.quantize_int15({x.values, x.int15}, rows, blocks);
  if (wanted.bf16) kernels_.quantize_bf16({x.values, x.bf16}, rows, blocks);
}

void CpuBackend::logits(const Batch& batch, Step& step) {
  if (logit_rows_.empty()) return;
  Worker& worker = step.worker;
  step.zone.next("final_norm");
  const std::int64_t num_rows = static_cast<std::int64_t>(logit_rows_.size());
  const ActivationBuffer& norm = space_.final_norm;
  const Range mine = worker.share(num_rows);
  for (std::int64_t i = mine.begin; i < mine.end; ++i) {
    const float* row = space_.residual.row(logit_rows_[static_cast<std::size_t>(i)]);
    kernels_.rms_norm({matrix(row, 1, config_.hidden_size), weights_.final_norm,
                       config_.rms_norm_eps, matrix(norm.values().row(i), 1, config_.hidden_size)},
                      {0, 1});
  }
  quantise(norm, dense_forms(), mine);
  step.barrier();

  step.zone.next("unembedding");
  const MatrixView<float> out = matrix(batch.logits, num_rows, config_.vocab_size);
  for_units(worker, counters_.back(), num_rows <= kRedundantTokens,
            dense_units(num_rows, config_.vocab_size), [&](Range tokens, Range rows) {
              linear(kernels_, dense_.unembedding, norm.activations().rows(tokens),
                     Epilogue::kStore, rows_of(out, tokens), rows,
                     step.space.kernel_scratch.as<std::byte>());
            });
}

}  // namespace gptoss::cpu

namespace gptoss {

std::unique_ptr<Backend> make_cpu_backend(const ModelConfig& config,
                                          const MappedCheckpoint& checkpoint,
                                          const BackendOptions& options) {
  GPTOSS_REQUIRE(InvalidArgument,
                 options.precision == Precision::kDefault || options.dense == DenseFormat::kBf16,
                 "[load_model] expected dense='bf16' with precision='float32', got dense='int8'; "
                 "int8 matrices are not float32");
  return std::make_unique<cpu::CpuBackend>(config, checkpoint, options);
}

}  // namespace gptoss
