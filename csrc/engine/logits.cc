#include "engine/logits.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace gptoss {
namespace {

constexpr std::size_t kScanBlock = 1024;

// Orders floats like signed integers; adding zero makes -0 equal to +0.
inline std::int32_t signed_key(float value) {
  const std::int32_t bits = std::bit_cast<std::int32_t>(value + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
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

// exp(x) for -100 <= x <= 0 to about 1e-15 relative, exactly 1 at 0. Plain multiplications and
// additions, no library call: the same bits on every platform (compile with -ffp-contract=off).
// Cody-Waite reduction, then the Taylor series up to degree 11 on |r| <= ln(2) / 2.
constexpr double kRoundMagic = 6755399441055744.0;  // 1.5 * 2^52: the sum holds the rounded integer
inline double exp_scaled(double x, int scale_bits) {
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  const double shifted = x * kLog2e + kRoundMagic;
  const double n = shifted - kRoundMagic;
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double p = 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
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
  // The low bits of `shifted` are n in two's complement.
  const std::uint64_t exponent =
      std::bit_cast<std::uint64_t>(shifted) + static_cast<std::uint64_t>(1023 + scale_bits);
  return p * std::bit_cast<double>(exponent << 52);
}

inline std::uint64_t weight_of(double logit, double largest, double inverse_temperature) {
  const double x = (logit - largest) * inverse_temperature;
  const double clamped = x > -100.0 ? x : -100.0;
  constexpr double kIntegerMagic = 4503599627370496.0;  // 2^52: adding it rounds to an integer
  const double weight = exp_scaled(clamped, kWeightBits) + kIntegerMagic;
  return std::bit_cast<std::uint64_t>(weight) & ((std::uint64_t{1} << 52) - 1);
}

inline std::uint64_t weight_sum(const float* logits, std::size_t count, double largest,
                                double inverse_temperature) {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    total += weight_of(logits[i], largest, inverse_temperature);
  }
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

std::uint32_t order_key(float value) {
  return static_cast<std::uint32_t>(signed_key(value)) ^ 0x80000000u;
}

LogitRange scan_logits(std::span<const float> logits) {
  const KeyRange range = key_range(logits.data(), logits.size());
  const std::int32_t plus_inf = signed_key(std::numeric_limits<float>::infinity());
  const std::int32_t minus_inf = signed_key(-std::numeric_limits<float>::infinity());
  LogitRange result;
  result.has_nan = range.largest > plus_inf || range.smallest < minus_inf;
  result.has_plus_inf = range.largest == plus_inf;
  result.largest = std::bit_cast<float>(range.largest ^ ((range.largest >> 31) & 0x7fffffff));
  return result;
}

std::int32_t argmax(std::span<const float> logits) {
  std::int32_t largest = std::numeric_limits<std::int32_t>::min();
  std::size_t block = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kScanBlock) {
    const std::size_t count = std::min(kScanBlock, logits.size() - begin);
    const std::int32_t key = key_range(logits.data() + begin, count).largest;
    if (key > largest) {
      largest = key;
      block = begin;
    }
  }
  while (block < logits.size() && signed_key(logits[block]) != largest) ++block;
  return static_cast<std::int32_t>(block);
}

SoftmaxWeights::SoftmaxWeights(float largest, double temperature)
    // Beyond 1e30 every other logit's weight is 0 anyway, and 0 * infinity would be NaN.
    : largest_(largest), inverse_temperature_(std::min(1.0 / temperature, 1e30)) {}

std::uint64_t SoftmaxWeights::weight(float logit) const {
  return weight_of(logit, largest_, inverse_temperature_);
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
  const LogitRange range = scan_logits(logits);
  if (range.has_nan || !std::isfinite(range.largest)) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return static_cast<double>(logits[static_cast<std::size_t>(token)]) - range.largest -
         log_normalizer(logits, range.largest);
}

void keep_likeliest(std::vector<Candidate>& candidates, Measure measure, std::uint64_t limit) {
  const auto measure_of = [measure](const Candidate& candidate) {
    return measure == Measure::kCount ? std::uint64_t{1} : candidate.weight;
  };
  const Cut cut = find_cut(
      [&](const auto& add) {
        for (const Candidate& candidate : candidates) {
          add(order_key(candidate.logit), measure_of(candidate));
        }
      },
      limit);
  std::uint64_t before = cut.before;
  std::erase_if(candidates, [&](const Candidate& candidate) {
    const std::uint32_t key = order_key(candidate.logit);
    if (key != cut.key) return key < cut.key;
    if (before >= limit) return true;
    before += measure_of(candidate);
    return false;
  });
}

void select_top_k(std::span<const float> logits, std::int64_t k, std::vector<Candidate>& out) {
  const std::uint64_t limit = static_cast<std::uint64_t>(k);
  const Cut cut = find_cut(
      [&](const auto& add) {
        for (const float logit : logits) add(order_key(logit), 1);
      },
      limit);
  std::uint64_t before = cut.before;
  out.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const std::uint32_t key = order_key(logits[i]);
    if (key < cut.key || (key == cut.key && before++ >= limit)) continue;
    out.push_back({static_cast<std::int32_t>(i), logits[i], 0});
  }
}

}  // namespace gptoss
