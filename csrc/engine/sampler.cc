#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "base/error.h"
#include "engine/random.h"

namespace gptoss {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// floor(random / 2^64 * total): uniform over [0, total) up to total / 2^64.
std::uint64_t scale_random(std::uint64_t random, std::uint64_t total) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>((static_cast<Wide>(random) * total) >> 64);
}

// Large options must not make an infinity of a finite logit.
float finite_or_less(double value) {
  return static_cast<float>(std::min<double>(value, std::numeric_limits<float>::max()));
}

std::uint64_t system_seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

}  // namespace

void SamplingOptions::validate(std::int64_t vocab_size) const {
  const auto check = [](bool fine, const char* name, const char* expected, double value) {
    GPTOSS_REQUIRE(InvalidArgument, fine, "[sampling] expected ", name, " ", expected, ", got ",
                   value, "; see Sampling");
  };
  check(temperature >= 0 && std::isfinite(temperature), "temperature", ">= 0 and finite",
        temperature);
  check(top_k >= 0, "top_k", ">= 0 (0: all)", static_cast<double>(top_k));
  check(top_p > 0 && top_p <= 1, "top_p", "in (0, 1]", top_p);
  check(min_p >= 0 && min_p <= 1, "min_p", "in [0, 1]", min_p);
  check(repetition_penalty > 0 && std::isfinite(repetition_penalty), "repetition_penalty",
        "> 0 and finite", repetition_penalty);
  check(std::isfinite(presence_penalty), "presence_penalty", "finite", presence_penalty);
  check(std::isfinite(frequency_penalty), "frequency_penalty", "finite", frequency_penalty);
  check(num_logprobs >= -1 && num_logprobs <= vocab_size, "logprobs", "up to the vocabulary's size",
        static_cast<double>(num_logprobs));
  for (const auto& [token, bias] : logit_bias) {
    GPTOSS_REQUIRE(InvalidArgument, token >= 0 && token < vocab_size,
                   "[sampling] expected ids in [0, ", vocab_size, ") in logit_bias, got ", token,
                   "; were they made with this model's tokenizer?");
    check(std::isfinite(bias) || bias == kMinusInf, "logit_bias", "finite or -inf", bias);
  }
}

Sampler::Sampler(SamplingOptions options, std::int64_t vocab_size, TokenIds banned,
                 std::span<const std::int32_t> prompt)
    : options_(std::move(options)), vocab_size_(vocab_size), banned_(std::move(banned)) {
  options_.validate(vocab_size);
  seed_ = options_.seed ? *options_.seed : system_seed();
  const bool counts_output = options_.presence_penalty != 0 || options_.frequency_penalty != 0;
  const bool repeats = options_.repetition_penalty != 1;
  if (counts_output || repeats) {
    output_counts_.resize(static_cast<std::size_t>(vocab_size));
    is_seen_.resize(static_cast<std::size_t>(vocab_size));
  }
  if (!repeats) return;
  for (const std::int32_t token : prompt) {
    if (is_seen_[static_cast<std::size_t>(token)]) continue;
    is_seen_[static_cast<std::size_t>(token)] = true;
    seen_.push_back(token);
  }
}

void Sampler::apply_mask(const TokenMask& mask) {
  const auto vocab = static_cast<std::size_t>(vocab_size_);
  const bool bits = mask.format == MaskFormat::kBits;
  GPTOSS_REQUIRE(
      InvalidArgument, bits ? mask.data.size() >= (vocab + 7) / 8 : mask.data.size() == vocab,
      "[sample] expected a mask of ", bits ? (vocab + 7) / 8 : vocab, " bytes for ", vocab,
      " tokens, got ", mask.data.size(), "; build it for this model's vocabulary");
  const std::uint8_t* data = mask.data.data();
  float* out = adjusted_.data();
  if (!bits) {
    for (std::size_t i = 0; i < vocab; ++i) out[i] = data[i] != 0 ? out[i] : kMinusInf;
    return;
  }
  for (std::size_t byte = 0; byte < (vocab + 7) / 8; ++byte) {
    const unsigned allowed = data[byte];
    if (allowed == 0xff) continue;
    const std::size_t end = std::min(8 * byte + 8, vocab);
    if (allowed == 0) {
      std::fill(out + 8 * byte, out + end, kMinusInf);
      continue;
    }
    for (std::size_t i = 8 * byte; i < end; ++i) {
      if ((allowed >> (i % 8) & 1u) == 0) out[i] = kMinusInf;
    }
  }
}

void Sampler::apply_penalties() {
  for (const std::int32_t token : seen_) {
    float& logit = adjusted_[static_cast<std::size_t>(token)];
    double value = logit;
    value = value > 0 ? value / options_.repetition_penalty : value * options_.repetition_penalty;
    const std::int32_t count = output_counts_[static_cast<std::size_t>(token)];
    if (count > 0) value -= options_.presence_penalty + count * options_.frequency_penalty;
    logit = finite_or_less(value);
  }
}

// The logits after bias, mask and penalties: computed in double, kept in float32.
std::span<const float> Sampler::adjust(std::span<const float> logits, const TokenMask* mask) {
  const bool bans = banned_ != nullptr && !banned_->empty();
  if (options_.logit_bias.empty() && mask == nullptr && !bans && seen_.empty()) return logits;
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [token, bias] : options_.logit_bias) {
    float& logit = adjusted_[static_cast<std::size_t>(token)];
    logit = finite_or_less(static_cast<double>(logit) + bias);
  }
  if (mask != nullptr) apply_mask(*mask);
  if (bans) {
    for (const std::int32_t token : *banned_)
      adjusted_[static_cast<std::size_t>(token)] = kMinusInf;
  }
  apply_penalties();
  return adjusted_;
}

bool Sampler::has_filters() const {
  return (options_.top_k > 0 && options_.top_k < vocab_size_) || options_.top_p < 1 ||
         options_.min_p > 0;
}

// What top-k, top-p and min-p leave, ascending by token. Never sorts: a radix descent finds the
// cut.
void Sampler::fill_candidates(std::span<const float> logits, LogitScan& scan,
                              const SoftmaxWeights& weights) {
  const double min_weight = std::max(1.0, std::ceil(options_.min_p * kLargestWeight));
  std::uint64_t total = 0;  // for top-p: of what top-k leaves
  if (options_.top_k > 0 && options_.top_k < vocab_size_) {
    scan.top_k(options_.top_k, candidates_);
    for (Candidate& candidate : candidates_) {
      candidate.weight = weights.weight(candidate.logit);
      total += candidate.weight;
    }
  } else {
    double lightest = min_weight;
    if (options_.top_p < 1) {
      // Tokens lighter than (1 - p) * total / vocab weigh less than (1 - p) * total together, so
      // that top-p never reaches them.
      total = weights.sum(logits);
      const double share = (1 - options_.top_p) * static_cast<double>(total);
      lightest = std::max(min_weight, std::floor(0.99 * share / static_cast<double>(vocab_size_)));
    }
    scan.at_least(weights.lower_bound(lightest), candidates_);
    for (Candidate& candidate : candidates_) {
      candidate.weight = weights.weight(candidate.logit);
    }
  }
  if (options_.top_p < 1) {
    const double limit = std::ceil(options_.top_p * static_cast<double>(total));
    keep_likeliest(candidates_, Measure::kWeight, static_cast<std::uint64_t>(std::max(limit, 1.0)));
  }
  std::erase_if(candidates_, [min_weight](const Candidate& candidate) {
    return static_cast<double>(candidate.weight) < min_weight;
  });
}

std::int32_t Sampler::draw(std::span<const float> logits, LogitScan& scan) {
  const SoftmaxWeights weights(scan.largest(), options_.temperature);
  const std::uint64_t random = philox(seed_, draws_);
  if (has_filters()) {
    fill_candidates(logits, scan, weights);
    std::uint64_t total = 0;
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    std::uint64_t left = scale_random(random, total);
    for (const Candidate& candidate : candidates_) {
      if (left < candidate.weight) return candidate.token;
      left -= candidate.weight;
    }
  }
  std::uint64_t left = scale_random(random, weights.block_sums(logits, sums_));
  std::size_t block = 0;
  while (left >= sums_[block]) left -= sums_[block++];
  std::size_t token = block * SoftmaxWeights::kBlock;
  for (;; ++token) {
    const std::uint64_t weight = weights.weight(logits[token]);
    if (left < weight) return static_cast<std::int32_t>(token);
    left -= weight;
  }
}

void Sampler::record(std::int32_t token) {
  ++draws_;
  if (output_counts_.empty()) return;
  ++output_counts_[static_cast<std::size_t>(token)];
  if (is_seen_[static_cast<std::size_t>(token)]) return;
  is_seen_[static_cast<std::size_t>(token)] = true;
  seen_.push_back(token);
}

void Sampler::add_logprobs(std::span<const float> logits, SampledToken& result) {
  if (options_.num_logprobs < 0) return;
  const double shift = scan_.largest() + log_normalizer(logits, scan_.largest());
  result.logprob = logits[static_cast<std::size_t>(result.token)] - shift;
  if (options_.num_logprobs == 0) return;
  scan_.top_k(options_.num_logprobs, candidates_);
  std::stable_sort(candidates_.begin(), candidates_.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  for (const Candidate& candidate : candidates_) {
    result.top.push_back({candidate.token, candidate.logit - shift});
  }
}

// Scans and checks the row, before and after adjust.
Sampler::Row Sampler::prepare(std::span<const float> logits, const TokenMask* mask) {
  GPTOSS_REQUIRE(InvalidArgument, std::ssize(logits) == vocab_size_, "[sample] expected ",
                 vocab_size_, " logits, got ", logits.size(),
                 "; give one row of this model's logits");
  scan_.scan(logits);
  GPTOSS_REQUIRE(Error, !scan_.has_nan() && !scan_.has_plus_inf(), "[sample] logits hold ",
                 scan_.has_nan() ? "NaN" : "+inf",
                 ", expected finite values; is the checkpoint damaged?");
  GPTOSS_REQUIRE(Error, std::isfinite(scan_.largest()),
                 "[sample] logits hold -inf only, expected finite values; is the checkpoint "
                 "damaged?");
  const std::span<const float> adjusted = adjust(logits, mask);
  if (adjusted.data() == logits.data()) return {logits, scan_};
  adjusted_scan_.scan(adjusted);
  GPTOSS_REQUIRE(InvalidArgument, std::isfinite(adjusted_scan_.largest()),
                 "[sample] expected at least one allowed token, the mask, the bias and the banned "
                 "ids leave none; allow more");
  return {adjusted, adjusted_scan_};
}

SampledToken Sampler::sample(std::span<const float> logits, const TokenMask* mask) {
  const Row row = prepare(logits, mask);
  SampledToken result;
  result.token = options_.temperature == 0 ? row.scan.argmax() : draw(row.logits, row.scan);
  add_logprobs(logits, result);
  record(result.token);
  return result;
}

std::optional<DrawOptions> Sampler::draw_options(std::uint64_t ahead) const {
  const bool needs_more = options_.num_logprobs >= 0 || !options_.logit_bias.empty() ||
                          options_.repetition_penalty != 1 || options_.presence_penalty != 0 ||
                          options_.frequency_penalty != 0;
  if (needs_more) return std::nullopt;
  return DrawOptions{.temperature = options_.temperature,
                     .top_k = options_.top_k,
                     .top_p = options_.top_p,
                     .min_p = options_.min_p,
                     .random = philox(seed_, draws_ + ahead),
                     .banned = banned_};
}

void Sampler::distribution(std::span<const float> logits, const TokenMask* mask,
                           std::span<double> out) {
  const Row row = prepare(logits, mask);
  GPTOSS_REQUIRE(InvalidArgument, out.size() == logits.size(), "[sample] expected room for ",
                 vocab_size_, " probabilities, got ", out.size());
  std::fill(out.begin(), out.end(), 0.0);
  if (options_.temperature == 0) {
    out[static_cast<std::size_t>(row.scan.argmax())] = 1.0;
    return;
  }
  const SoftmaxWeights weights(row.scan.largest(), options_.temperature);
  if (!has_filters()) {
    const double total = static_cast<double>(weights.sum(row.logits));
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = static_cast<double>(weights.weight(row.logits[i])) / total;
    }
    return;
  }
  fill_candidates(row.logits, row.scan, weights);
  double total = 0;
  for (const Candidate& candidate : candidates_) total += static_cast<double>(candidate.weight);
  for (const Candidate& candidate : candidates_) {
    out[static_cast<std::size_t>(candidate.token)] = static_cast<double>(candidate.weight) / total;
  }
}

}  // namespace gptoss
