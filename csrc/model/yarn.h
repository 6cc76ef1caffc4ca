// Rotary angles with the YaRN extension (arXiv 2309.00071, as in openai/gpt-oss torch/model.py):
// one table for every layer, the angle rounded to float32 as the published model does.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model_config.h"

namespace gptoss {

class Yarn {
 public:
  explicit Yarn(const ModelConfig& config);

  // cos and sin of head_dim / 2 angles at one position, both times the concentration
  // 0.1 * ln(factor) + 1. Out: [head_dim / 2] each.
  void angles(std::int64_t position, float* cos, float* sin) const;

  const std::vector<float>& inverse_frequencies() const { return inverse_frequencies_; }
  float concentration() const { return concentration_; }

 private:
  std::vector<float> inverse_frequencies_;  // [head_dim / 2]
  float concentration_ = 1.0f;
};

}  // namespace gptoss
