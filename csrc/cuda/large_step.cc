#include "cuda/large_step.h"

#include <algorithm>
#include <vector>

#include "cuda/kernels/attention.h"
#include "cuda/kernels/linear_bf16.h"
#include "cuda/kernels/linear_mxfp4.h"
#include "cuda/kernels/moe_combine.h"
#include "cuda/kernels/rms_norm.h"
#include "cuda/tuning.h"

namespace gptoss::cuda {
namespace {

// Rows whose logits one product makes: enough for its time to be arithmetic's and not the reading
// of the unembedding, few enough for their norms to take little memory.
constexpr std::int32_t kLogitRows = 1024;

// Pieces of the workspace one after another; over no memory it only counts.
class Pieces {
 public:
  explicit Pieces(std::uint8_t* base) : base_(base) {}

  template <typename T>
  void take(T*& piece, std::int64_t count) {
    piece = reinterpret_cast<T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }
  void* take_bytes(std::size_t num_bytes) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t begin = used_;
    used_ += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    largest_ = std::max(largest_, used_);
    return base_ == nullptr ? nullptr : base_ + begin;
  }
  std::size_t used() const { return used_; }
  void go_back(std::size_t used) { used_ = used; }
  std::size_t num_bytes() const { return largest_; }

 private:
  std::uint8_t* base_;
  std::size_t used_ = 0;
  std::size_t largest_ = 0;
};

}  // namespace

std::size_t LargeStep::lay_out(const ModelConfig& c, std::int32_t max_rows, std::uint8_t* base,
                               Buffers& b) {
  const std::int64_t slots = max_rows * c.experts_per_token;
  Pieces pieces(base);
  pieces.take(b.residual, max_rows * c.hidden_size);
  pieces.take(b.xs, max_rows * c.hidden_size);
  pieces.take(b.expert_ids, slots);
  pieces.take(b.expert_weights, slots);
  pieces.take(b.places, slots);
  pieces.take(b.tiles, expert_tiles_bound(slots, c.num_experts, kLeastTileTokens) + 1);
  pieces.take(b.num_tiles, 1 + kTileCounters);
  pieces.take(b.logit_rows, std::min(max_rows, kLogitRows) * c.hidden_size);
  b.attention = pieces.take_bytes(attention_workspace_bytes(c.num_heads));
  const std::size_t shared = pieces.used();
  pieces.take(b.qkv, max_rows * (c.q_size() + 2 * c.kv_size()));
  pieces.take(b.q, max_rows * c.q_size());
  pieces.take(b.attended, max_rows * c.q_size());
  pieces.go_back(shared);
  pieces.take(b.sorted, slots * c.hidden_size);
  pieces.take(b.activations, slots * c.intermediate_size);
  pieces.take(b.expert_out, slots * c.hidden_size);
  return pieces.num_bytes();
}

std::size_t LargeStep::workspace_bytes(const ModelConfig& config, std::int32_t max_rows) {
  Buffers unused;
  return lay_out(config, max_rows, nullptr, unused);
}

LargeStep::LargeStep(const DeviceModel& model, const DeviceInfo& device, const KvPlan& plan,
                     std::int32_t max_rows)
    : model_(model),
      device_(device),
      plan_(plan),
      max_rows_(max_rows),
      memory_(workspace_bytes(model.config, max_rows), "large_step") {
  lay_out(model.config, max_rows, memory_.as<std::uint8_t>(), buffers_);
  check(cudaMemset(buffers_.attention, 0, attention_workspace_bytes(model.config.num_heads)),
        "large_step");
}

void LargeStep::run(const StepView& step, float* logits, cudaStream_t stream, Trace* trace) {
  const ModelConfig& c = model_.config;
  GPTOSS_REQUIRE(InvalidArgument, step.num_rows <= max_rows_, "[large_step] expected at most ",
                 max_rows_, " rows, got ", step.num_rows, "; cut the batch");
  embed({.tokens = step.tokens,
         .embedding = model_.embedding,
         .num_rows = step.num_rows,
         .hidden = static_cast<std::int32_t>(c.hidden_size),
         .residual = buffers_.residual,
         .norm_scale = nullptr,
         .xs = nullptr,
         .square_sums = nullptr},
        Dependence::kFull, stream);
  rms_norm<__nv_bfloat16>({.x = buffers_.residual,
                           .rows = nullptr,
                           .scale = model_.layers.front().attn_norm,
                           .eps = c.rms_norm_eps,
                           .out = buffers_.xs,
                           .num_rows = step.num_rows,
                           .hidden = static_cast<std::int32_t>(c.hidden_size)},
                          stream);
  for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
    attention_block(step, layer, stream);
    moe_block(step, layer, stream);
    if (trace != nullptr && trace->enabled()) {
      trace->count("experts touched", touched_experts(step.num_rows, stream));
    }
  }
  write_logits(step, logits, stream);
}

std::int64_t LargeStep::touched_experts(std::int32_t num_rows, cudaStream_t stream) const {
  std::vector<std::int32_t> experts(
      static_cast<std::size_t>(num_rows * model_.config.experts_per_token));
  check(cudaMemcpyAsync(experts.data(), buffers_.expert_ids, experts.size() * sizeof(std::int32_t),
                        cudaMemcpyDeviceToHost, stream),
        "large_step");
  check(cudaStreamSynchronize(stream), "large_step");
  std::sort(experts.begin(), experts.end());
  return std::unique(experts.begin(), experts.end()) - experts.begin();
}

// residual += out(attention(qkv(xs)))
void LargeStep::attention_block(const StepView& step, std::size_t layer, cudaStream_t stream) {
  const ModelConfig& c = model_.config;
  const DeviceLayer& w = model_.layers[layer];
  const KvGroup group = plan_.layer_group[layer];
  const auto layer_offset =
      static_cast<std::int64_t>(plan_.layer_bytes()) * plan_.layer_in_group[layer];
  const auto num_heads = static_cast<std::int32_t>(c.num_heads);
  const auto num_kv_heads = static_cast<std::int32_t>(c.num_kv_heads);
  linear_bf16({.weight = w.qkv,
               .bias = w.qkv_bias,
               .x = buffers_.xs,
               .num_tokens = step.num_rows,
               .output = TileOutput::kStore,
               .out = buffers_.qkv,
               .out_stride = w.qkv.rows},
              device_, stream);
  kv_write_rope<float>({.step = step,
                        .qkv = buffers_.qkv,
                        .rope_table = model_.rope_table,
                        .q_out = buffers_.q,
                        .group = group,
                        .layer_offset = layer_offset,
                        .num_heads = num_heads,
                        .num_kv_heads = num_kv_heads},
                       stream);
  attention_prefill(
      {.step = step,
       .q = buffers_.q,
       .sinks = w.sinks,
       .out = buffers_.attended,
       .group = group,
       .layer_offset = layer_offset,
       .window = group == KvGroup::kWindow ? static_cast<std::int32_t>(plan_.window) : 0,
       .num_heads = num_heads,
       .num_kv_heads = num_kv_heads,
       .workspace = buffers_.attention},
      device_, stream);
  linear_bf16({.weight = w.out,
               .bias = w.out_bias,
               .x = buffers_.attended,
               .num_tokens = step.num_rows,
               .output = TileOutput::kAdd,
               .out = buffers_.residual,
               .out_stride = c.hidden_size},
              device_, stream);
}

// residual += sum over the chosen experts of weight * down(swiglu(gate_up(norm(residual))))
void LargeStep::moe_block(const StepView& step, std::size_t layer, cudaStream_t stream) {
  const ModelConfig& c = model_.config;
  const DeviceLayer& w = model_.layers[layer];
  const auto hidden = static_cast<std::int32_t>(c.hidden_size);
  const auto num_experts = static_cast<std::int32_t>(c.num_experts);
  const auto k = static_cast<std::int32_t>(c.experts_per_token);
  const std::int32_t num_slots = step.num_rows * k;
  const std::int32_t tile_tokens = expert_tile_tokens(num_slots, num_experts, device_);
  const std::int64_t layer_slots = static_cast<std::int64_t>(layer) * num_slots;
  norm_and_route(
      {.residual = buffers_.residual,
       .scale = w.mlp_norm,
       .eps = c.rms_norm_eps,
       .router = w.router,
       .bias = w.router_bias,
       .forced = step.forced_experts == nullptr ? nullptr : step.forced_experts + layer_slots,
       .xs = buffers_.xs,
       .expert_ids = buffers_.expert_ids,
       .weights = buffers_.expert_weights,
       .num_rows = step.num_rows,
       .experts_per_token = k},
      device_, stream);
  sort_and_gather({.expert_ids = buffers_.expert_ids,
                   .num_slots = num_slots,
                   .num_experts = num_experts,
                   .max_tile_tokens = tile_tokens,
                   .places = buffers_.places,
                   .tiles = buffers_.tiles,
                   .num_tiles = buffers_.num_tiles},
                  {.x = buffers_.xs,
                   .places = buffers_.places,
                   .sorted = buffers_.sorted,
                   .num_rows = step.num_rows,
                   .experts_per_token = k,
                   .hidden = hidden},
                  stream);
  ExpertProduct product{.weight = w.gate_up,
                        .bias = w.gate_up_bias,
                        .x = buffers_.sorted,
                        .num_slots = num_slots,
                        .tiles = buffers_.tiles,
                        .num_tiles = buffers_.num_tiles,
                        .tile_tokens = tile_tokens,
                        .output = TileOutput::kSwiglu,
                        .out = buffers_.activations,
                        .out_stride = c.intermediate_size,
                        .swiglu_limit = c.swiglu_limit,
                        .swiglu_alpha = c.swiglu_alpha,
                        .num_taken = buffers_.num_tiles + 1};
  linear_mxfp4(product, device_, stream);
  product.weight = w.down;
  product.bias = w.down_bias;
  product.x = buffers_.activations;
  product.output = TileOutput::kStore;
  product.out = buffers_.expert_out;
  product.out_stride = c.hidden_size;
  product.tiles_ready = true;
  product.num_taken = buffers_.num_tiles + 2;
  linear_mxfp4(product, device_, stream);
  const bool last = layer + 1 == model_.layers.size();
  moe_combine({.expert_out = buffers_.expert_out,
               .places = buffers_.places,
               .weights = buffers_.expert_weights,
               .experts_per_token = k,
               .residual = buffers_.residual,
               .norm_scale = last ? nullptr : model_.layers[layer + 1].attn_norm,
               .norm_eps = c.rms_norm_eps,
               .xs = buffers_.xs,
               .num_rows = step.num_rows,
               .hidden = hidden,
               .inputs_ready = true},
              stream);
}

void LargeStep::write_logits(const StepView& step, float* logits, cudaStream_t stream) {
  const ModelConfig& c = model_.config;
  for (std::int32_t begin = 0; begin < step.num_logit_rows; begin += kLogitRows) {
    const std::int32_t num_rows = std::min(kLogitRows, step.num_logit_rows - begin);
    rms_norm<__nv_bfloat16>({.x = buffers_.residual,
                             .rows = step.logit_rows + begin,
                             .scale = model_.final_norm,
                             .eps = c.rms_norm_eps,
                             .out = buffers_.logit_rows,
                             .num_rows = num_rows,
                             .hidden = static_cast<std::int32_t>(c.hidden_size)},
                            stream);
    linear_bf16({.weight = model_.unembedding,
                 .bias = nullptr,
                 .x = buffers_.logit_rows,
                 .num_tokens = num_rows,
                 .output = TileOutput::kStore,
                 .out = logits + begin * c.vocab_size,
                 .out_stride = c.vocab_size},
                device_, stream);
  }
}

}  // namespace gptoss::cuda
