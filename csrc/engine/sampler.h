// From a row of logits to the next token.
//
// Order of what is applied, as in transformers and vLLM:
//   1. logit bias, added                                   (OpenAI)
//   2. token mask and banned ids: -inf
//   3. repetition penalty: a positive logit is divided by it, a negative one multiplied, once for
//      each distinct token of prompt and output            (CTRL, arXiv 1909.05858)
//   4. presence and frequency penalty, over the output only: logit -= (count > 0) * presence
//      + count * frequency                                 (OpenAI)
//   5. temperature; 0 takes the largest logit, the lowest id among equals, and ends here
//   6. top-k: exactly k, lower ids first among equals
//   7. top-p: the likeliest tokens until their probability reaches p, the one that crosses included
//   8. min-p: what has at least min_p times the probability of the likeliest
// Logprobs are of the model's own distribution: log-softmax of the logits as they came.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "backend/batch.h"
#include "engine/logits.h"

namespace gptoss {

struct SamplingOptions {
  double temperature = 1.0;
  std::int64_t top_k = 0;  // 0: all
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // -inf bans a token
  std::optional<std::uint64_t> seed;                       // none: from the system
  std::int64_t num_logprobs = -1;  // alternatives to report; 0: the token's own; -1: nothing

  // Throws InvalidArgument naming the first option out of range.
  void validate(std::int64_t vocab_size) const;
};

// Which tokens may be sampled. Bits: token t is bit t % 8 of byte t / 8. Bytes: not zero allows.
enum class MaskFormat { kBits, kBytes };
struct TokenMask {
  MaskFormat format = MaskFormat::kBits;
  std::span<const std::uint8_t> data;  // bits: at least vocab / 8 rounded up; bytes: vocab
};

struct TokenLogprob {
  std::int32_t token = 0;
  double logprob = 0;
};

struct SampledToken {
  std::int32_t token = 0;
  std::optional<double> logprob;
  std::vector<TokenLogprob> top;  // most probable first, lower ids first among equals
};

class Sampler {
 public:
  using TokenIds = std::shared_ptr<const std::vector<std::int32_t>>;

  // `prompt`: what repetition_penalty counts besides the output. `banned` may be null.
  Sampler(SamplingOptions options, std::int64_t vocab_size, TokenIds banned,
          std::span<const std::int32_t> prompt);

  // Throws Error when the logits hold NaN or +inf or nothing finite, InvalidArgument when mask,
  // bias and banned ids leave no token. The state moves on only when a token is returned.
  SampledToken sample(std::span<const float> logits, const TokenMask* mask = nullptr);
  // How a backend draws the token after the next `ahead` ones; none where the options need what
  // only `sample` does (logprobs, bias, penalties).
  std::optional<DrawOptions> draw_options(std::uint64_t ahead) const;
  // A backend drew this token so: the state moves on as if `sample` had.
  void drawn(std::int32_t token) { record(token); }
  // The probability of each token to be returned by `sample` in the same state; out: [vocab].
  void distribution(std::span<const float> logits, const TokenMask* mask, std::span<double> out);

  // The whole random state: number `draws()` of Philox4x32-10 with this seed comes next.
  std::uint64_t seed() const { return seed_; }
  std::uint64_t draws() const { return draws_; }

 private:
  // What is sampled from: the caller's logits or the adjusted copy.
  struct Row {
    std::span<const float> logits;
    LogitScan& scan;
  };
  Row prepare(std::span<const float> logits, const TokenMask* mask);
  std::span<const float> adjust(std::span<const float> logits, const TokenMask* mask);
  void apply_mask(const TokenMask& mask);
  void apply_penalties();
  // Of the logits after adjust, which `scan` has seen.
  std::int32_t draw(std::span<const float> logits, LogitScan& scan);
  bool has_filters() const;
  void fill_candidates(std::span<const float> logits, LogitScan& scan,
                       const SoftmaxWeights& weights);
  void record(std::int32_t token);
  void add_logprobs(std::span<const float> logits, SampledToken& result);

  const SamplingOptions options_;
  const std::int64_t vocab_size_;
  const TokenIds banned_;
  std::uint64_t seed_;
  std::uint64_t draws_ = 0;
  // Penalties: how often each token was output, and which tokens were seen at all, each once.
  std::vector<std::int32_t> output_counts_;  // [vocab] or empty
  std::vector<bool> is_seen_;                // [vocab] or empty
  std::vector<std::int32_t> seen_;
  // Scratch.
  LogitScan scan_;           // of the logits as they came
  LogitScan adjusted_scan_;  // after adjust
  std::vector<float> adjusted_;
  std::vector<Candidate> candidates_;
  std::vector<std::uint64_t> sums_;
};

}  // namespace gptoss
