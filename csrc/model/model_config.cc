#include "model/model_config.h"

#include <cmath>

#include "base/error.h"
#include "model/mxfp4.h"

namespace gptoss {
namespace {

// Products of two sizes, and byte counts of whole tensors, stay far inside int64.
constexpr std::int64_t kMaxSize = std::int64_t{1} << 24;

void require_size(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  GPTOSS_REQUIRE(CheckpointError, value >= low && value <= high,
                 "[load_checkpoint] config: expected ", name, " from ", low, " to ", high, ", got ",
                 value, "; is this a gpt-oss checkpoint?");
}

void require_positive(const char* name, double value) {
  GPTOSS_REQUIRE(CheckpointError, std::isfinite(value) && value > 0,
                 "[load_checkpoint] config: expected a positive ", name, ", got ", value,
                 "; is this a gpt-oss checkpoint?");
}

void require_multiple(const char* name, std::int64_t value, std::int64_t unit) {
  GPTOSS_REQUIRE(CheckpointError, value % unit == 0, "[load_checkpoint] config: expected ", name,
                 " to be a multiple of ", unit, ", got ", value, "; is this a gpt-oss checkpoint?");
}

}  // namespace

void ModelConfig::validate() const {
  require_size("num_layers", num_layers, 1, 4096);
  require_size("hidden_size", hidden_size, kMxBlock, kMaxSize);
  require_size("intermediate_size", intermediate_size, kMxBlock, kMaxSize);
  require_multiple("hidden_size", hidden_size, kMxBlock);
  require_multiple("intermediate_size", intermediate_size, kMxBlock);
  require_size("num_experts", num_experts, 1, 4096);
  require_size("experts_per_token", experts_per_token, 1, num_experts);
  require_size("head_dim", head_dim, kHeadDim, kHeadDim);
  require_size("num_heads", num_heads, 1, 4096);
  require_size("num_kv_heads", num_kv_heads, 1, num_heads);
  require_multiple("num_heads", num_heads, num_kv_heads);
  require_size("num_heads / num_kv_heads", heads_per_kv_head(), 1, kMaxHeadsPerKvHead);
  require_size("vocab_size", vocab_size, 1, kMaxSize);
  require_size("max_context", max_context, 1, std::int64_t{1} << 24);
  GPTOSS_REQUIRE(CheckpointError, layer_is_sliding.size() == static_cast<std::size_t>(num_layers),
                 "[load_checkpoint] config: expected ", num_layers, " layer types, got ",
                 layer_is_sliding.size());
  for (const bool sliding : layer_is_sliding) {
    if (sliding) require_size("sliding_window", sliding_window, 1, std::int64_t{1} << 24);
  }
  require_positive("rms_norm_eps", rms_norm_eps);
  require_positive("swiglu_limit", swiglu_limit);
  require_positive("swiglu_alpha", swiglu_alpha);
  require_positive("rope_theta", rope_theta);
  require_positive("rope_factor", rope_factor);
  require_positive("rope_original_context", rope_original_context);
  require_positive("rope_beta_fast", rope_beta_fast);
  require_positive("rope_beta_slow", rope_beta_slow);
}

}  // namespace gptoss
