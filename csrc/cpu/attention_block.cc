// The attention half of a layer on the CPU.
#include <algorithm>

#include "cpu/cpu_backend.h"

namespace gptoss::cpu {
namespace {

Range intersect(Range a, Range b) {
  return {std::max(a.begin, b.begin), std::max(std::max(a.begin, b.begin), std::min(a.end, b.end))};
}

// Rows of a matrix whose bytes begin at `first`, of those in a share; whole grains.
Range rows_within(const DenseMatrix& matrix, std::int64_t first, Range bytes) {
  const auto row_at = [&](std::int64_t byte) {
    const std::int64_t grain_bytes = kRowGrain * matrix.row_bytes();
    const std::int64_t row = (byte - first + grain_bytes / 2) / grain_bytes * kRowGrain;
    return std::clamp<std::int64_t>(byte < first ? 0 : row, 0, matrix.rows());
  };
  return {row_at(bytes.begin), row_at(bytes.end)};
}

}  // namespace

// residual += out(attention(rope(qkv(norm(residual)))))
void CpuBackend::attention_block(const Batch& batch, std::size_t layer, Step& step) {
  const LayerWeights& w = weights_.layers[layer];
  const DenseLayer& dense = dense_.layers[layer];
  Worker& worker = step.worker;

  step.zone.next("rms_norm");
  const Activations x = normalised(w.attn_norm, dense_forms(), step);

  step.zone.next("qkv");
  project_qkv(dense, x, layer, step);
  step.barrier();

  step.zone.next("rope");
  const Range mine = worker.share(step.num_tokens);
  const auto cos_sin = ActivationBuffer::as_const(space_.cos_sin);
  kernels_.rope({space_.q, config_.num_heads, cos_sin}, mine);
  kernels_.rope({space_.k, config_.num_kv_heads, cos_sin}, mine);
  for (std::size_t s = 0; s < batch.segments.size(); ++s) {
    const std::int64_t first = attention_plan_.first_token[s];
    const Segment& segment = batch.segments[s];
    const Range own = intersect(mine, {first, first + segment.num_tokens()});
    if (own.size() == 0) continue;
    const auto rows_of = [&](MatrixView<float> view) {
      return MatrixView<const float>{view.row(first), segment.num_tokens(), view.cols, view.stride};
    };
    kernels_.kv_write({rows_of(space_.k), rows_of(space_.v), segment.position,
                       attention_plan_.layer_pages(static_cast<std::int64_t>(layer),
                                                   static_cast<std::int64_t>(s)),
                       segment.first_page[static_cast<int>(plan_.layer_group[layer])],
                       config_.num_kv_heads, plan_.dtype},
                      {own.begin - first, own.end - first});
  }
  step.barrier();

  step.zone.next("attention");
  attention(batch, layer, step);
  step.barrier();

  step.zone.next("attention_out");
  if (int8_dense_) {
    // Quantising a row again is cheap; one barrier would cost more while tokens are few.
    if (!step.redundant()) {
      quantise(space_.attention, dense_forms(), worker.share(step.num_tokens));
      step.barrier();
    } else {
      if (worker.index() == 0) quantise(space_.attention, dense_forms(), step.tokens());
      step.barrier();
    }
  }
  for_rows(worker, counter(layer, kOut), step.redundant(), config_.hidden_size,
           dense_unit_rows(config_.hidden_size), [&](Range rows) {
             linear(kernels_, dense.out, space_.attention.activations(), Epilogue::kAdd,
                    space_.residual, rows, step.space.kernel_scratch.as<std::byte>());
           });
  step.barrier();
}

// Tokens are few: an equal share of the bytes, which rows of int8 and of bf16 have not. Else rows
// from a counter.
void CpuBackend::project_qkv(const DenseLayer& dense, const Activations& x, std::size_t layer,
                             Step& step) {
  const auto part = [&](const DenseMatrix& matrix, Range rows, MatrixView<float> out) {
    linear(kernels_, matrix, x, Epilogue::kStore, out, rows,
           step.space.kernel_scratch.as<std::byte>());
  };
  const std::int64_t q_rows = dense.q.rows();
  const std::int64_t k_rows = dense.k.rows();
  if (step.redundant()) {
    const std::int64_t q_bytes = q_rows * dense.q.row_bytes();
    const std::int64_t k_bytes = k_rows * dense.k.row_bytes();
    const Range bytes = step.worker.share(q_bytes + k_bytes + k_rows * dense.v.row_bytes());
    part(dense.q, rows_within(dense.q, 0, bytes), space_.q);
    part(dense.k, rows_within(dense.k, q_bytes, bytes), space_.k);
    part(dense.v, rows_within(dense.v, q_bytes + k_bytes, bytes), space_.v);
    return;
  }
  const std::int64_t num_rows = q_rows + 2 * k_rows;
  const std::int64_t grain = dense_unit_rows(num_rows);
  for_rows(step.worker, counter(layer, kQkv), false, num_rows, grain, [&](Range rows) {
    const auto within = [&](std::int64_t first, std::int64_t count) {
      const Range own = intersect(rows, {first, first + count});
      return Range{own.begin - first, own.end - first};
    };
    part(dense.q, within(0, q_rows), space_.q);
    part(dense.k, within(q_rows, k_rows), space_.k);
    part(dense.v, within(q_rows + k_rows, k_rows), space_.v);
  });
}

void CpuBackend::attention(const Batch& batch, std::size_t layer, Step& step) {
  const KvGroup group = plan_.layer_group[layer];
  const auto args_of = [&](const AttentionTask& task) {
    const std::size_t s = static_cast<std::size_t>(task.segment);
    const Segment& segment = batch.segments[s];
    const std::int64_t first = attention_plan_.first_token[s];
    const std::int64_t count = segment.num_tokens();
    return AttentionArgs{
        .q = {space_.q.row(first), count, space_.q.cols, space_.q.stride},
        .position = segment.position,
        .pages = attention_plan_.layer_pages(static_cast<std::int64_t>(layer), task.segment),
        .first_page = segment.first_page[static_cast<int>(group)],
        .window = group == KvGroup::kWindow ? plan_.window : 0,
        .sinks = weights_.layers[layer].sinks,
        .num_heads = config_.num_heads,
        .num_kv_heads = config_.num_kv_heads,
        .dtype = plan_.dtype,
        .out = {space_.attention.values().row(first), count, space_.attention.values().cols,
                space_.attention.values().stride}};
  };
  const auto for_tasks = [&](Phase phase, const std::vector<AttentionTask>& tasks, auto&& body) {
    const std::int64_t count = static_cast<std::int64_t>(tasks.size());
    for (;;) {
      const Range taken = counter(layer, phase).take(count, 1);
      if (taken.size() == 0) return;
      body(tasks[static_cast<std::size_t>(taken.begin)]);
    }
  };
  std::byte* scratch = step.space.kernel_scratch.as<std::byte>();
  AttentionPartial* partials = attention_plan_.partials.data();
  for_tasks(kAttention, attention_plan_.tasks[static_cast<int>(group)], [&](const auto& task) {
    if (task.split == kWhole) {
      kernels_.attention(args_of(task), task.kv_head, task.tokens, scratch);
    } else {
      kernels_.attention_split(args_of(task), task.kv_head, task.tokens, task.split,
                               partials + task.partial, scratch);
    }
  });
  const auto& merges = attention_plan_.merges[static_cast<int>(group)];
  if (merges.empty()) return;
  step.barrier();
  const std::int64_t heads = config_.heads_per_kv_head();
  for_tasks(kMerge, merges, [&](const auto& task) {
    kernels_.attention_merge(args_of(task), task.kv_head, task.tokens, partials + task.partial,
                             task.num_splits, heads * task.tokens.size());
  });
}

}  // namespace gptoss::cpu
