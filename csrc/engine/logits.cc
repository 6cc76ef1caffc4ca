#include "engine/logits.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace gptoss {
namespace {

// Orders floats like signed integers; adding zero makes -0 equal to +0. NaN lies beyond infinity on
// either side.
inline std::int32_t signed_key(float value) {
  const std::int32_t bits = std::bit_cast<std::int32_t>(value + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
inline float key_value(std::int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}
inline std::uint32_t unsigned_key(float value) {
  return static_cast<std::uint32_t>(signed_key(value)) ^ 0x80000000u;
}

struct KeyRange {
  std::int32_t smallest = std::numeric_limits<std::int32_t>::max();
  std::int32_t largest = std::numeric_limits<std::int32_t>::min();
};

// Integers, since compilers vectorise their minimum and maximum without changing float semantics.
inline KeyRange key_range(const float* logits, std::size_t count) {
  KeyRange range;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t key = signed_key(logits[i]);
    range.smallest = key < range.smallest ? key : range.smallest;
    range.largest = key > range.largest ? key : range.largest;
  }
  return range;
}

// 16 bytes: what every x86-64 and 64-bit ARM has. The same arithmetic serves one value and two.
using Doubles = double __attribute__((vector_size(16)));
using Words = std::uint64_t __attribute__((vector_size(16)));

// round(2^44 * exp(x)), 0 for x below about -31. The exponential is exact at 0 and good to about
// 1e-14 elsewhere, by plain multiplications and additions and no library call: the same bits on
// every platform (compile with -ffp-contract=off). Cody-Waite reduction, then the Taylor series up
// to degree 11 on |r| <= ln(2) / 2.
template <typename Real, typename Word>
[[gnu::always_inline]] inline Word weight_of(Real x) {
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr double kRound = 6755399441055744.0;    // 1.5 * 2^52: the sum's low bits are an integer
  constexpr double kInteger = 4503599627370496.0;  // 2^52: likewise, not negative
  const Real lowest = Real{} - 100.0;
  x = x > lowest ? x : lowest;
  const Real shifted = x * kLog2e + kRound;
  const Real n = shifted - kRound;
  const Real r = (x - n * kLn2High) - n * kLn2Low;
  Real p = r * (1.0 / 39916800) + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const Word exponent =
      std::bit_cast<Word>(shifted) + static_cast<std::uint64_t>(1023 + kWeightBits);
  const Real weight = p * std::bit_cast<Real>(exponent << 52) + kInteger;
  return std::bit_cast<Word>(weight) & ((std::uint64_t{1} << 52) - 1);
}

inline std::uint64_t weight_sum(const float* logits, std::size_t count, double largest,
                                double inverse_temperature) {
  std::uint64_t total = 0;
  Words sums[2] = {};
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const Doubles low = {logits[i], logits[i + 1]};
    const Doubles high = {logits[i + 2], logits[i + 3]};
    sums[0] += weight_of<Doubles, Words>((low - largest) * inverse_temperature);
    sums[1] += weight_of<Doubles, Words>((high - largest) * inverse_temperature);
  }
  for (; i < count; ++i) {
    total += weight_of<double, std::uint64_t>((logits[i] - largest) * inverse_temperature);
  }
  for (const Words& sum : sums) total += sum[0] + sum[1];
  return total;
}

// Where the limit falls: keys above `key` are kept, and those equal to it while `before` (the
// measure of all kept so far) is below the limit.
struct Cut {
  std::uint32_t key = 0;
  std::uint64_t before = 0;
};

// A radix descent over the key's bits, most significant digit first. `visit(f)` calls f(key,
// measure) for every item; at most three passes.
template <typename Visit>
Cut find_cut(const Visit& visit, std::uint64_t limit) {
  constexpr int kDigitBits[3] = {11, 11, 10};
  Cut cut;
  std::uint32_t fixed_mask = 0;
  int shift = 32;
  std::array<std::uint64_t, 2048> sums;
  for (const int bits : kDigitBits) {
    shift -= bits;
    const std::uint32_t digit_mask = (1u << bits) - 1;
    sums.fill(0);
    visit([&](std::uint32_t key, std::uint64_t measure) {
      if ((key & fixed_mask) == cut.key) sums[(key >> shift) & digit_mask] += measure;
    });
    // The digit in which the limit falls, or the last one in use if all together stay below it.
    std::uint32_t digit = digit_mask;
    std::uint64_t before = cut.before;
    for (std::uint32_t d = digit_mask + 1; d-- > 0;) {
      if (sums[d] == 0) continue;
      digit = d;
      cut.before = before;
      before += sums[d];
      if (before >= limit) break;
    }
    cut.key |= digit << shift;
    fixed_mask |= digit_mask << shift;
  }
  return cut;
}

}  // namespace

void LogitScan::scan(std::span<const float> logits) {
  logits_ = logits;
  block_keys_.clear();
  KeyRange all;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const KeyRange range =
        key_range(logits.data() + begin, std::min(kBlock, logits.size() - begin));
    block_keys_.push_back(range.largest);
    all.smallest = std::min(all.smallest, range.smallest);
    all.largest = std::max(all.largest, range.largest);
  }
  constexpr float kInf = std::numeric_limits<float>::infinity();
  has_nan_ = all.largest > signed_key(kInf) || all.smallest < signed_key(-kInf);
  largest_ = key_value(all.largest);
}

std::int32_t LogitScan::argmax() const {
  const std::int32_t key = signed_key(largest_);
  std::size_t block = 0;
  while (block_keys_[block] != key) ++block;
  std::size_t token = block * kBlock;
  while (signed_key(logits_[token]) != key) ++token;
  return static_cast<std::int32_t>(token);
}

void LogitScan::at_least(float bound, std::vector<Candidate>& out) const {
  const std::int32_t key = signed_key(bound);
  out.clear();
  for (std::size_t block = 0; block < block_keys_.size(); ++block) {
    if (block_keys_[block] < key) continue;
    const std::size_t end = std::min((block + 1) * kBlock, logits_.size());
    for (std::size_t i = block * kBlock; i < end; ++i) {
      if (logits_[i] >= bound) out.push_back({static_cast<std::int32_t>(i), logits_[i], 0});
    }
  }
}

void LogitScan::top_k(std::int64_t k, std::vector<Candidate>& out) {
  // The k-th largest of the blocks' largest is a lower bound of the k-th largest of all.
  float bound = -std::numeric_limits<float>::infinity();
  if (k <= std::ssize(block_keys_)) {
    sorted_keys_ = block_keys_;
    const auto at = sorted_keys_.begin() + (k - 1);
    std::nth_element(sorted_keys_.begin(), at, sorted_keys_.end(), std::greater<>());
    bound = key_value(*at);
  }
  at_least(bound, out);
  keep_likeliest(out, Measure::kCount, static_cast<std::uint64_t>(k));
}

SoftmaxWeights::SoftmaxWeights(float largest, double temperature)
    // Beyond 1e30 every other logit's weight is 0 anyway, and 0 * infinity would be NaN.
    : largest_(largest), inverse_temperature_(std::min(1.0 / temperature, 1e30)) {}

std::uint64_t SoftmaxWeights::weight(float logit) const {
  return weight_of<double, std::uint64_t>((logit - largest_) * inverse_temperature_);
}

std::uint64_t SoftmaxWeights::sum(std::span<const float> logits) const {
  return weight_sum(logits.data(), logits.size(), largest_, inverse_temperature_);
}

std::uint64_t SoftmaxWeights::block_sums(std::span<const float> logits,
                                         std::vector<std::uint64_t>& sums) const {
  sums.clear();
  std::uint64_t total = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const std::size_t count = std::min(kBlock, logits.size() - begin);
    sums.push_back(weight_sum(logits.data() + begin, count, largest_, inverse_temperature_));
    total += sums.back();
  }
  return total;
}

float SoftmaxWeights::lower_bound(double weight) const {
  // Half a unit for rounding, then a margin far above the arithmetic's error.
  const double x = std::log((weight - 0.5) / static_cast<double>(kLargestWeight)) - 1e-9;
  const double bound = largest_ + x / inverse_temperature_;
  return std::nextafter(static_cast<float>(bound), -std::numeric_limits<float>::infinity());
}

double log_normalizer(std::span<const float> logits, float largest) {
  const std::uint64_t total = SoftmaxWeights(largest, 1.0).sum(logits);
  return std::log(static_cast<double>(total)) - kWeightBits * 0.693147180559945309417;
}

double log_probability(std::span<const float> logits, std::int32_t token) {
  LogitScan scan;
  scan.scan(logits);
  if (scan.has_nan() || !std::isfinite(scan.largest())) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return static_cast<double>(logits[static_cast<std::size_t>(token)]) - scan.largest() -
         log_normalizer(logits, scan.largest());
}

void keep_likeliest(std::vector<Candidate>& candidates, Measure measure, std::uint64_t limit) {
  const auto measure_of = [measure](const Candidate& candidate) {
    return measure == Measure::kCount ? std::uint64_t{1} : candidate.weight;
  };
  const Cut cut = find_cut(
      [&](const auto& add) {
        for (const Candidate& candidate : candidates) {
          add(unsigned_key(candidate.logit), measure_of(candidate));
        }
      },
      limit);
  std::uint64_t before = cut.before;
  std::erase_if(candidates, [&](const Candidate& candidate) {
    const std::uint32_t key = unsigned_key(candidate.logit);
    if (key != cut.key) return key < cut.key;
    if (before >= limit) return true;
    before += measure_of(candidate);
    return false;
  });
}

}  // namespace gptoss
