#include "cuda/small_step.h"

#include <algorithm>
#include <bit>

#include "cuda/kernels/expert_row.h"

namespace gptoss::cuda {
namespace {

// Attention's grid follows the largest position; a graph serves positions up to a power of two.
constexpr std::int32_t kLeastSpan = 1024;

std::int32_t span_of(std::int32_t max_position) {
  const auto tokens = static_cast<std::uint32_t>(std::max(max_position + 1, kLeastSpan));
  return static_cast<std::int32_t>(std::bit_ceil(tokens));
}

// Parts of one allocation, each aligned to 256 bytes.
class Layout {
 public:
  explicit Layout(std::byte* base) : base_(base) {}
  template <typename T>
  T* take(std::int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + size_;
    size_ += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  std::size_t size() const { return size_; }

 private:
  std::byte* base_;
  std::size_t size_ = 0;
};

SmallBuffers lay_out(Layout& layout, const ModelConfig& c) {
  const std::int64_t hidden_chunks = tiles_along(c.hidden_size, kMxChunk) * kMxChunk;
  const std::int64_t expert_chunks = tiles_along(c.intermediate_size, kMxChunk) * kMxChunk;
  return {.residual = layout.take<float>(kSmallRows * c.hidden_size),
          .xs = layout.take<__nv_bfloat16>(kSmallRows * c.hidden_size),
          .expert_xs = layout.take<__nv_bfloat16>(kSmallRows * hidden_chunks),
          .attn_squares = layout.take<float>(kSmallRows * (c.hidden_size / kTileRows)),
          .mlp_squares = layout.take<float>(kSmallRows * (c.hidden_size / kTileRows)),
          .q = layout.take<__nv_bfloat16>(kSmallRows * c.q_size()),
          .attention = layout.take<__nv_bfloat16>(kSmallRows * c.q_size()),
          .h = layout.take<__nv_bfloat16>(kSmallRows * c.experts_per_token * expert_chunks),
          .expert_sums = layout.take<float>(kSmallRows * c.experts_per_token * c.hidden_size),
          .routing = layout.take<std::byte>(kRoutingBytes),
          .router = {.sums = layout.take<unsigned long long>(kSmallRows * c.num_experts),
                     .not_finite = layout.take<unsigned>(kSmallRows)}};
}

}  // namespace

std::size_t SmallStep::workspace_bytes(const ModelConfig& config) {
  Layout size(nullptr);
  lay_out(size, config);
  size.take<std::byte>(static_cast<std::int64_t>(attention_workspace_bytes(config.num_heads)));
  return size.size();
}

bool SmallStep::fits(const ModelConfig& config, const DeviceInfo& device) {
  require_small_kernels(config, device);
  return small_group_rows(config, device) > 0;
}

SmallStep::SmallStep(const DeviceModel& model, const DeviceInfo& device, const KvPlan& plan)
    : model_(model), plan_(plan), device_(device) {
  require_small_kernels(model.config, device_);
  group_rows_ = small_group_rows(model.config, device_);
  GPTOSS_REQUIRE(InvalidArgument, group_rows_ > 0,
                 "[small_step] expected blocks with room for a row of this model, got ",
                 device_.smem_per_block, " bytes of shared memory");
  workspace_ = DeviceBuffer(workspace_bytes(model.config), "small_step");
  check(cudaMemset(workspace_.as<std::byte>(), 0, workspace_.num_bytes()), "small_step");
  Layout layout(workspace_.as<std::byte>());
  buffers_ = lay_out(layout, model.config);
  attention_workspace_ = layout.take<std::byte>(
      static_cast<std::int64_t>(attention_workspace_bytes(model.config.num_heads)));
}

void SmallStep::run(const StepView& step, float* logits, cudaStream_t stream) {
  GPTOSS_REQUIRE(InvalidArgument, step.num_rows >= 1 && step.num_rows <= kSmallRows,
                 "[small_step] expected 1 to ", kSmallRows, " rows, got ", step.num_rows);
  StepView bucket = step;
  bucket.max_position =
      std::min(span_of(step.max_position), static_cast<std::int32_t>(model_.config.max_context)) -
      1;
  bucket.max_position = std::max(bucket.max_position, step.max_position);
  graphs_.run({bucket, logits}, stream, "small_step", [&] { launch_all(bucket, logits, stream); });
}

void SmallStep::launch_all(const StepView& step, float* logits, cudaStream_t stream) const {
  const ModelConfig& c = model_.config;
  for (std::int32_t first = 0; first < step.num_rows; first += group_rows_) {
    // What the kernels of a group hand each other may lie anywhere; what the logits are made of
    // stays until all groups are done.
    Group group{step, first, step.num_rows, buffers_};
    group.step.tokens += first;
    group.step.positions += first;
    group.step.segment_of += first;
    group.step.num_rows = std::min(group_rows_, step.num_rows - first);
    group.buffers.xs += first * c.hidden_size;
    group.buffers.attn_squares += first * (c.hidden_size / kTileRows);
    launch_group(group, stream);
  }
  for (std::int32_t first = 0; first < step.num_logit_rows; first += group_rows_) {
    unembedding_small({.logit_rows = step.logit_rows + first,
                       .num_logit_rows = std::min(group_rows_, step.num_logit_rows - first),
                       .weight = model_.unembedding,
                       .eps = c.rms_norm_eps,
                       .buffers = buffers_,
                       .logits = logits + first * c.vocab_size},
                      device_, Dependence::kProgrammatic, stream);
  }
}

void SmallStep::launch_group(const Group& group, cudaStream_t stream) const {
  embed({.tokens = group.step.tokens,
         .embedding = model_.embedding,
         .num_rows = group.step.num_rows,
         .hidden = static_cast<std::int32_t>(model_.config.hidden_size),
         .residual = group.buffers.residual,
         .norm_scale = model_.layers.front().attn_norm,
         .xs = group.buffers.xs,
         .square_sums = group.buffers.attn_squares},
        Dependence::kFull, stream);
  for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
    launch_layer(group, layer, stream);
  }
}

void SmallStep::launch_layer(const Group& row_group, std::size_t index, cudaStream_t stream) const {
  const StepView& step = row_group.step;
  const SmallBuffers& buffers = row_group.buffers;
  const ModelConfig& c = model_.config;
  const DeviceLayer& layer = model_.layers[index];
  const bool is_last = index + 1 == model_.layers.size();
  const KvGroup group = plan_.layer_group[index];
  const auto layer_offset =
      plan_.layer_in_group[index] * static_cast<std::int64_t>(plan_.layer_bytes());
  const auto num_heads = static_cast<std::int32_t>(c.num_heads);
  const auto num_kv_heads = static_cast<std::int32_t>(c.num_kv_heads);
  const auto num_experts = static_cast<std::int32_t>(c.num_experts);
  constexpr Dependence kEarly = Dependence::kProgrammatic;

  qkv_small({.step = step,
             .weight = layer.qkv,
             .bias = layer.qkv_bias,
             .eps = c.rms_norm_eps,
             .rope_table = model_.rope_table,
             .group = group,
             .layer_offset = layer_offset,
             .num_heads = num_heads,
             .num_kv_heads = num_kv_heads,
             .num_experts = num_experts,
             .buffers = buffers},
            device_, kEarly, stream);
  attention_decode(
      {.step = step,
       .q = buffers.q,
       .sinks = layer.sinks,
       .out = buffers.attention,
       .group = group,
       .layer_offset = layer_offset,
       .window = group == KvGroup::kWindow ? static_cast<std::int32_t>(plan_.window) : 0,
       .num_heads = num_heads,
       .num_kv_heads = num_kv_heads,
       .workspace = attention_workspace_},
      device_, kEarly, stream);
  out_small({.num_rows = step.num_rows,
             .weight = layer.out,
             .bias = layer.out_bias,
             .next_norm = layer.mlp_norm,
             .router_by_channel = layer.router_by_channel,
             .num_experts = num_experts,
             .buffers = buffers},
            device_, kEarly, stream);

  const std::int64_t forced_at =
      (static_cast<std::int64_t>(index) * row_group.step_rows + row_group.first_row) *
      c.experts_per_token;
  const RoutingArgs routing{
      .positions = step.positions,
      .forced = step.forced_experts == nullptr ? nullptr : step.forced_experts + forced_at,
      .bias = layer.router_bias,
      .squares = buffers.mlp_squares,
      .sums = buffers.router,
      .eps = c.rms_norm_eps,
      .hidden = static_cast<std::int32_t>(c.hidden_size),
      .num_rows = step.num_rows,
      .num_experts = num_experts,
      .experts_per_token = static_cast<std::int32_t>(c.experts_per_token)};
  const bool alone = row_group.step_rows == 1 && expert_row_fits(c, device_);
  gate_up_small({.alone = alone,
                 .routing = routing,
                 .weight = layer.gate_up,
                 .bias = layer.gate_up_bias,
                 .limit = c.swiglu_limit,
                 .alpha = c.swiglu_alpha,
                 .buffers = buffers},
                device_, kEarly, stream);
  down_small({.alone = alone,
              .routing = routing,
              .weight = layer.down,
              .bias = layer.down_bias,
              .next_norm = is_last ? model_.final_norm : model_.layers[index + 1].attn_norm,
              .buffers = buffers},
             device_, kEarly, stream);
}

}  // namespace gptoss::cuda
