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

  step.zone.next("rms_norm");
  const Activations x = normalised(w.attn_norm, dense_forms(), step);

  step.zone.next("qkv");
  const Projection parts[] = {{dense.q, space_.q}, {dense.k, space_.k}, {dense.v, space_.v}};
  project(parts, x, counter(layer, kQkv), step);
  step.barrier();

  step.zone.next("rope");
  rotate(space_.q, config_.num_heads, step);
  rotate(space_.k, config_.num_kv_heads, step);
  write_keys_and_values(batch, layer, step);
  step.barrier();

  attend(batch, layer, step);
}

// The last layer where the logits of few rows are wanted: keys and values of all, all else of
// those.
void CpuBackend::last_attention_block(const Batch& batch, std::size_t layer, Step& step) {
  const LayerWeights& w = weights_.layers[layer];
  const DenseLayer& dense = dense_.layers[layer];

  step.zone.next("rms_norm");
  const Activations all = normalised(w.attn_norm, dense_forms(), step);
  step.zone.next("qkv");
  const Projection keys_and_values[] = {{dense.k, space_.k}, {dense.v, space_.v}};
  project(keys_and_values, all, counter(layer, kQkv), step);
  step.barrier();
  step.zone.next("rope");
  rotate(space_.k, config_.num_kv_heads, step);
  write_keys_and_values(batch, layer, step);
  step.barrier();

  if (step.worker.index() == 0) keep_wanted_rows();
  step.barrier();
  step.num_tokens = wanted_.num_tokens();
  step.plan = &wanted_plan_;
  if (step.num_tokens == 0) return;

  step.zone.next("rms_norm");
  const Activations x = normalised(w.attn_norm, dense_forms(), step);
  step.zone.next("qkv");
  const Projection queries[] = {{dense.q, space_.q}};
  project(queries, x, counter(layer, kQueries), step);
  step.barrier();
  step.zone.next("rope");
  rotate(space_.q, config_.num_heads, step);
  step.barrier();
  attend(wanted_, layer, step);
}

void CpuBackend::rotate(MatrixView<float> x, std::int64_t num_heads, Step& step) {
  kernels_.rope({x, num_heads, ActivationBuffer::as_const(space_.cos_sin)},
                step.worker.share(step.num_tokens));
}

void CpuBackend::write_keys_and_values(const Batch& batch, std::size_t layer, Step& step) {
  const Range mine = step.worker.share(step.num_tokens);
  for (std::size_t s = 0; s < batch.segments.size(); ++s) {
    const std::int64_t first = step.plan->first_token[s];
    const Segment& segment = batch.segments[s];
    const Range own = intersect(mine, {first, first + segment.num_tokens()});
    if (own.size() == 0) continue;
    const auto own_rows = [&](MatrixView<float> view) {
      return ActivationBuffer::as_const(rows_of(view, {first, first + segment.num_tokens()}));
    };
    kernels_.kv_write(
        {own_rows(space_.k), own_rows(space_.v), segment.position,
         step.plan->layer_pages(static_cast<std::int64_t>(layer), static_cast<std::int64_t>(s)),
         segment.first_page[static_cast<int>(plan_.layer_group[layer])], config_.num_kv_heads,
         plan_.dtype},
        {own.begin - first, own.end - first});
  }
}

// residual += out(attention(q))
void CpuBackend::attend(const Batch& batch, std::size_t layer, Step& step) {
  Worker& worker = step.worker;
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
  const Activations x = space_.attention.activations();
  for_units(worker, counter(layer, kOut), step.redundant(),
            dense_units(step.num_tokens, config_.hidden_size), [&](Range tokens, Range rows) {
              linear(kernels_, dense_.layers[layer].out, x.rows(tokens), Epilogue::kAdd,
                     rows_of(space_.residual, tokens), rows,
                     step.space.kernel_scratch.as<std::byte>());
            });
  step.barrier();
}

// Tokens are few: an equal share of the bytes, which rows of int8 and of bf16 have not. Else rows
// and tokens from the counter.
void CpuBackend::project(std::span<const Projection> parts, const Activations& x,
                         WorkCounter& counter, Step& step) {
  const auto product = [&](const Projection& part, Range tokens, Range rows) {
    linear(kernels_, part.matrix, x.rows(tokens), Epilogue::kStore, rows_of(part.out, tokens), rows,
           step.space.kernel_scratch.as<std::byte>());
  };
  std::int64_t num_rows = 0;
  std::int64_t num_bytes = 0;
  for (const Projection& part : parts) {
    num_rows += part.matrix.rows();
    num_bytes += part.matrix.rows() * part.matrix.row_bytes();
  }
  if (step.redundant()) {
    const Range bytes = step.worker.share(num_bytes);
    std::int64_t first = 0;
    for (const Projection& part : parts) {
      product(part, step.tokens(), rows_within(part.matrix, first, bytes));
      first += part.matrix.rows() * part.matrix.row_bytes();
    }
    return;
  }
  const ProductUnits units = dense_units(step.num_tokens, num_rows);
  for_units(step.worker, counter, false, units, [&](Range tokens, Range rows) {
    std::int64_t first = 0;
    for (const Projection& part : parts) {
      const Range own = intersect(rows, {first, first + part.matrix.rows()});
      product(part, tokens, {own.begin - first, own.end - first});
      first += part.matrix.rows();
    }
  });
}

void CpuBackend::attention(const Batch& batch, std::size_t layer, Step& step) {
  const KvGroup group = plan_.layer_group[layer];
  const auto args_of = [&](const AttentionTask& task) {
    const std::size_t s = static_cast<std::size_t>(task.segment);
    const Segment& segment = batch.segments[s];
    const std::int64_t first = step.plan->first_token[s];
    const std::int64_t count = segment.num_tokens();
    return AttentionArgs{
        .q = {space_.q.row(first), count, space_.q.cols, space_.q.stride},
        .position = segment.position,
        .pages = step.plan->layer_pages(static_cast<std::int64_t>(layer), task.segment),
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
  AttentionPartial* partials = step.plan->partials.data();
  for_tasks(kAttention, step.plan->tasks[static_cast<int>(group)], [&](const auto& task) {
    if (task.split == kWhole) {
      kernels_.attention(args_of(task), task.kv_head, task.tokens, scratch);
    } else {
      kernels_.attention_split(args_of(task), task.kv_head, task.tokens, task.split,
                               partials + task.partial, scratch);
    }
  });
  const auto& merges = step.plan->merges[static_cast<int>(group)];
  if (merges.empty()) return;
  step.barrier();
  const std::int64_t heads = config_.heads_per_kv_head();
  for_tasks(kMerge, merges, [&](const auto& task) {
    kernels_.attention_merge(args_of(task), task.kv_head, task.tokens, partials + task.partial,
                             task.num_splits, heads * task.tokens.size());
  });
}

}  // namespace gptoss::cpu
