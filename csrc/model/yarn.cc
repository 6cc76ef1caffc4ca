#include "model/yarn.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace gptoss {
namespace {

// The dimension whose wavelength makes `rotations` turns within the original context.
double correction_dim(const ModelConfig& config, double rotations) {
  const double dims = static_cast<double>(config.head_dim);
  return dims * std::log(config.rope_original_context / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(config.rope_theta));
}

}  // namespace

Yarn::Yarn(const ModelConfig& config) {
  const std::int64_t half = config.head_dim / 2;
  double low = correction_dim(config, config.rope_beta_fast);
  double high = correction_dim(config, config.rope_beta_slow);
  if (config.rope_truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_dim - 1));
  if (low == high) high += 0.001;  // as the published code does, against a division by zero

  const bool scaled = config.rope_factor > 1.0;
  inverse_frequencies_.resize(static_cast<std::size_t>(half));
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(
        config.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    // Short wavelengths (ramp 0) keep their angle, long ones (ramp 1) are stretched by the factor.
    const double inverse = scaled
                               ? ramp / (config.rope_factor * frequency) + (1.0 - ramp) / frequency
                               : 1.0 / frequency;
    inverse_frequencies_[static_cast<std::size_t>(i)] = static_cast<float>(inverse);
  }
  if (scaled) concentration_ = static_cast<float>(0.1 * std::log(config.rope_factor) + 1.0);
}

void Yarn::angles(std::int64_t position, float* cos, float* sin) const {
  const float pos = static_cast<float>(position);
  for (std::size_t i = 0; i < inverse_frequencies_.size(); ++i) {
    const double angle = static_cast<double>(pos * inverse_frequencies_[i]);  // rounded to float32
    cos[i] = static_cast<float>(std::cos(angle)) * concentration_;
    sin[i] = static_cast<float>(std::sin(angle)) * concentration_;
  }
}

}  // namespace gptoss
