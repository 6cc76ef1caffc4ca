// Arithmetic over one row of logits: [vocab] float32.
//
// Probabilities are integers here: weight = round(2^44 * exp((logit - largest) / temperature)), in
// double. Sums of integers do not depend on their order, so that a draw is the same however the row
// was cut; a token below 2^-45 of the likeliest has weight 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace gptoss {

constexpr int kWeightBits = 44;  // vocabularies up to 2^19 sum up below 2^63
constexpr std::uint64_t kLargestWeight = std::uint64_t{1} << kWeightBits;

struct Candidate {
  std::int32_t token;
  float logit;
  std::uint64_t weight;
};

// What one pass over a row finds, remembered by blocks so that later passes can skip most of them.
class LogitScan {
 public:
  static constexpr std::size_t kBlock = 256;

  void scan(std::span<const float> logits);

  bool has_nan() const { return has_nan_; }  // the rest is then unspecified
  bool has_plus_inf() const { return largest_ == std::numeric_limits<float>::infinity(); }
  float largest() const { return largest_; }  // -inf when nothing is finite
  // Index of the largest logit, the lowest among equals.
  std::int32_t argmax() const;
  // The k largest, ascending by token; ties at the end go to the lower ids. Weights are 0.
  void top_k(std::int64_t k, std::vector<Candidate>& out);
  // Every logit of `bound` or more, ascending by token. Weights are 0.
  void at_least(float bound, std::vector<Candidate>& out) const;

 private:
  std::span<const float> logits_;
  std::vector<std::int32_t> block_keys_;   // of the largest logit of each block
  std::vector<std::int32_t> sorted_keys_;  // scratch
  float largest_ = 0;
  bool has_nan_ = false;
};

// Weights of a row against its largest logit.
class SoftmaxWeights {
 public:
  // temperature > 0, largest finite.
  SoftmaxWeights(float largest, double temperature);

  std::uint64_t weight(float logit) const;
  // Sum over a row.
  std::uint64_t sum(std::span<const float> logits) const;
  // Sums over consecutive blocks of kBlock; returns the sum of all.
  std::uint64_t block_sums(std::span<const float> logits, std::vector<std::uint64_t>& sums) const;
  // No logit below this has a weight of `weight` or more (weight >= 1).
  float lower_bound(double weight) const;

  static constexpr std::size_t kBlock = 256;

 private:
  double largest_;
  double inverse_temperature_;
};

// Natural logarithm of softmax(logits)[token], in double; NaN if the row holds NaN or +inf.
double log_probability(std::span<const float> logits, std::int32_t token);
// log(sum(exp(logits - largest))).
double log_normalizer(std::span<const float> logits, float largest);

// Keeps the candidates that come before `limit` when taken in order of logit (largest first, lower
// ids first among equals): one is kept while the measure of those before it is below the limit, so
// at least one is. Candidates ascend by token, and still do afterwards. Linear in their number.
enum class Measure { kCount, kWeight };
void keep_likeliest(std::vector<Candidate>& candidates, Measure measure, std::uint64_t limit);

}  // namespace gptoss
