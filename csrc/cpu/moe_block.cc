// The mixture-of-experts half of a layer on the CPU.
#include <algorithm>

#include "cpu/cpu_backend.h"

namespace gptoss::cpu {

// residual += sum over the chosen experts of weight * down(swiglu(gate_up(norm(residual))))
void CpuBackend::moe_block(const Batch& batch, std::size_t layer, Step& step) {
  const LayerWeights& w = weights_.layers[layer];
  step.zone.next("rms_norm");
  const Activations x = normalised(w.mlp_norm, expert_forms(), step);

  step.zone.next("router");
  const DenseMatrix& router = dense_.layers[layer].router;
  linear(kernels_, router, x, Epilogue::kStore, space_.router_logits,
         step.worker.share(config_.num_experts, kernels_.row_tile),
         step.space.kernel_scratch.as<std::byte>());
  step.barrier();
  const Routing& routing = route(batch, layer, step);

  step.zone.next("gate_up");
  gate_up(layer, x, routing, step);
  step.barrier();

  step.zone.next("down");
  down(layer, routing, step);
  step.barrier();
}

const Routing& CpuBackend::route(const Batch& batch, std::size_t layer, Step& step) {
  const std::int64_t k = config_.experts_per_token;
  Routing& routing = step.redundant() ? step.space.routing : space_.routing;
  const std::int32_t* forced =
      batch.forced_experts == nullptr
          ? nullptr
          : batch.forced_experts + static_cast<std::int64_t>(layer) * step.num_tokens * k;
  kernels_.router_topk({ActivationBuffer::as_const(space_.router_logits), k,
                        routing.expert_ids.data(), routing.weights.data(), forced},
                       step.redundant() ? step.tokens() : step.worker.share(step.num_tokens));
  if (!step.redundant()) step.barrier();
  if (step.redundant() || step.worker.index() == 0) {
    routing.plan.build(routing.expert_ids.data(), step.num_tokens, k, config_.num_experts);
  }
  if (!step.redundant()) step.barrier();
  if (step.worker.index() == 0 && trace_.enabled()) {
    trace_.count("experts touched", static_cast<std::int64_t>(routing.plan.active.size()));
  }
  return routing;
}

void CpuBackend::gate_up(std::size_t layer, const Activations& x, const Routing& routing,
                         Step& step) {
  const LayerWeights& w = weights_.layers[layer];
  const std::int64_t num_rows = 2 * config_.intermediate_size;
  const std::int64_t num_active = static_cast<std::int64_t>(routing.plan.active.size());
  const auto expert_at = [&](std::int64_t i) {
    return routing.plan.active[static_cast<std::size_t>(i)];
  };
  if (step.redundant()) {  // an equal share of all rows of all chosen experts, in long runs
    const Range share = step.worker.share(num_active * num_rows, kGateUpUnit);
    for (std::int64_t row = share.begin; row < share.end;) {
      const std::int64_t first = row % num_rows;
      const std::int64_t end = std::min(num_rows, first + share.end - row);
      gate_up_unit(w, x, routing.plan, expert_at(row / num_rows), {first, end}, step.space);
      row += end - first;
    }
    return;
  }
  const std::int64_t unit_rows = expert_unit_rows();
  const std::int64_t units = (num_rows + unit_rows - 1) / unit_rows;
  for (;;) {
    const Range unit = counter(layer, kGateUp).take(num_active * units, 1);
    if (unit.size() == 0) return;
    const std::int64_t first = unit.begin % units * unit_rows;
    gate_up_unit(w, x, routing.plan, expert_at(unit.begin / units),
                 {first, std::min(first + unit_rows, num_rows)}, step.space);
  }
}

// Some rows of one expert's first matrix for all its tokens, through swiglu and quantisation.
void CpuBackend::gate_up_unit(const LayerWeights& w, const Activations& x, const MoePlan& plan,
                              std::int32_t expert, Range rows, ThreadSpace& space) {
  const std::int32_t begin = plan.offsets[static_cast<std::size_t>(expert)];
  const std::int64_t count = plan.offsets[static_cast<std::size_t>(expert) + 1] - begin;
  const MxMatrix whole = w.gate_up.expert(expert);
  const std::int64_t first_block = rows.begin * whole.blocks_per_row();
  const MatrixView<float> out = matrix(space.gate_up.as<float>(), count, rows.size());
  const LinearMxfp4Args args{.x = x.int8,
                             .x_bf16 = x.bf16,
                             .x_float = x.values,
                             .weight = {whole.blocks + first_block * kMxBlockBytes,
                                        whole.scales + first_block, rows.size(), whole.cols},
                             .bias = w.gate_up.expert_bias(expert) + rows.begin,
                             .x_rows = plan.tokens.data() + begin,
                             .out_rows = space_.row_numbers.data(),
                             .num_rows = count,
                             .out = out};
  const auto product = float32_ ? kernels_.linear_mxfp4_float32 : kernels_.linear_mxfp4_int8;
  product(args, {0, rows.size()}, space.kernel_scratch.as<std::byte>());

  // The outputs of these rows, for each token's slot.
  const Range cols{rows.begin / 2, rows.end / 2};
  const Range blocks{cols.begin / kMxBlock, cols.end / kMxBlock};
  const MatrixView<float> swiglu = space_.swiglu.values();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t slot = plan.slots[static_cast<std::size_t>(begin + i)];
    kernels_.swiglu({{out.row(i), 1, out.cols, out.stride},
                     config_.swiglu_limit,
                     config_.swiglu_alpha,
                     {swiglu.row(slot) + cols.begin, 1, cols.size(), swiglu.stride}},
                    {0, 1}, {0, cols.size()});
    quantise(space_.swiglu, expert_forms(), {slot, slot + 1}, blocks);
  }
}

void CpuBackend::down(std::size_t layer, const Routing& routing, Step& step) {
  const LayerWeights& w = weights_.layers[layer];
  const MoePlan& plan = routing.plan;
  const MoeCombineArgs combine{ActivationBuffer::as_const(space_.expert_out),
                               routing.weights.data(), config_.experts_per_token, space_.residual};
  if (step.redundant()) {  // every thread finishes its own rows of the residual
    const Range rows = step.worker.share(config_.hidden_size, kernels_.row_tile);
    if (rows.size() == 0) return;
    for (const std::int32_t expert : plan.active) down_unit(w, plan, expert, rows, step.space);
    kernels_.moe_combine(combine, step.tokens(), rows);
    return;
  }
  const std::int64_t num_active = static_cast<std::int64_t>(plan.active.size());
  const std::int64_t unit_rows = expert_unit_rows();
  const std::int64_t units = (config_.hidden_size + unit_rows - 1) / unit_rows;
  for (;;) {
    const Range unit = counter(layer, kDown).take(num_active * units, 1);
    if (unit.size() == 0) break;
    const std::int64_t first = unit.begin % units * unit_rows;
    down_unit(w, plan, plan.active[static_cast<std::size_t>(unit.begin / units)],
              {first, std::min(first + unit_rows, config_.hidden_size)}, step.space);
  }
  step.barrier();
  kernels_.moe_combine(combine, step.worker.share(step.num_tokens), {0, config_.hidden_size});
}

void CpuBackend::down_unit(const LayerWeights& w, const MoePlan& plan, std::int32_t expert,
                           Range rows, ThreadSpace& space) {
  const std::int32_t begin = plan.offsets[static_cast<std::size_t>(expert)];
  const Activations x = space_.swiglu.activations();
  const LinearMxfp4Args args{.x = x.int8,
                             .x_bf16 = x.bf16,
                             .x_float = x.values,
                             .weight = w.down.expert(expert),
                             .bias = w.down.expert_bias(expert),
                             .x_rows = plan.slots.data() + begin,
                             .out_rows = plan.slots.data() + begin,
                             .num_rows = plan.offsets[static_cast<std::size_t>(expert) + 1] - begin,
                             .out = space_.expert_out};
  const auto product = float32_ ? kernels_.linear_mxfp4_float32 : kernels_.linear_mxfp4_int8;
  product(args, rows, space.kernel_scratch.as<std::byte>());
}

}  // namespace gptoss::cpu
