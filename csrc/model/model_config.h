// What a gpt-oss model is, in numbers. Everything is read from config.json, never assumed.
#pragma once

#include <cstdint>
#include <vector>

namespace gptoss {

constexpr std::int64_t kHeadDim = 64;  // required by the kernels, checked at load
// Query heads that share a kv head: a tile of the attention kernels holds one token's. Checked too.
constexpr std::int64_t kMaxHeadsPerKvHead = 128;

struct ModelConfig {
  std::int64_t num_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;  // width of one expert
  std::int64_t num_experts = 0;
  std::int64_t experts_per_token = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t sliding_window = 0;
  std::vector<bool> layer_is_sliding;  // [num_layers]
  std::int64_t max_context = 0;
  float rms_norm_eps = 0;
  float swiglu_limit = 0;
  float swiglu_alpha = 0;
  // YaRN, arXiv 2309.00071.
  double rope_theta = 0;
  double rope_factor = 0;
  double rope_original_context = 0;
  double rope_beta_fast = 0;
  double rope_beta_slow = 0;
  bool rope_truncate = false;

  std::int64_t q_size() const { return num_heads * head_dim; }
  std::int64_t kv_size() const { return num_kv_heads * head_dim; }
  std::int64_t heads_per_kv_head() const { return num_heads / num_kv_heads; }

  // Throws CheckpointError naming the first value that no gpt-oss engine can run.
  void validate() const;
};

}  // namespace gptoss
