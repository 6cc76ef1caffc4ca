// What the kernels of draw_tokens share: the order of logits, their weights, the cut of a radix
// descent, and the memory between the kernels.
#pragma once

#include <cstdint>

#include "cuda/kernels/draw_tokens.h"
#include "cuda/layout.h"

namespace gptoss::cuda {

constexpr std::int64_t kDrawChunk = 256;  // SoftmaxWeights::kBlock of engine/logits.h
constexpr int kDrawWeightBits = 44;

// Orders floats; -0 equals +0.
__device__ __forceinline__ std::uint32_t logit_key(float value) {
  const auto bits = __float_as_int(value + 0.0f);
  return static_cast<std::uint32_t>(bits ^ ((bits >> 31) & 0x7fffffff)) ^ 0x80000000u;
}
__device__ __forceinline__ float key_value(std::uint32_t key) {
  const auto bits = static_cast<std::int32_t>(key ^ 0x80000000u);
  return __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff));
}

__device__ __forceinline__ bool is_allowed(const DrawRow& row, std::int64_t token) {
  return row.allowed == nullptr || (row.allowed[token / 32] >> (token % 32) & 1) != 0;
}
// Whether some tokens are cut off by their place in the order.
__host__ __device__ inline bool cuts(const DrawRow& row) {
  return row.top_k > 0 || row.top_p < 1;
}
// Whether the chunks' largest logits say where about the cut of top-k lies.
__host__ __device__ inline bool bounded_by_chunks(const DrawRow& row, std::int64_t num_chunks) {
  return row.top_k > 0 && row.top_k <= num_chunks;
}
// What those of top-p weigh together at least, `total` being what all weigh.
__device__ __forceinline__ std::uint64_t top_p_limit(const DrawRow& row, std::uint64_t total) {
  return static_cast<std::uint64_t>(fmax(ceil(row.top_p * static_cast<double>(total)), 1.0));
}

// round(2^44 * exp((logit - largest) / temperature)): the operations of weight_of in
// engine/logits.cc, one by one, contracted only where the product is exact.
struct DrawWeights {
  double largest;
  double inverse_temperature;

  static constexpr double kTwoTo52 = 4503599627370496.0;
  static constexpr std::uint64_t kBitsOfZero = 0x4330000000000000;  // of kTwoTo52

  __device__ std::uint64_t of(float logit) const { return bits(logit) - kBitsOfZero; }

  // The weight and kBitsOfZero.
  __device__ std::uint64_t bits(float logit) const {
    const auto add = [](double a, double b) { return __dadd_rn(a, b); };
    const auto multiply = [](double a, double b) { return __dmul_rn(a, b); };
    const double x =
        limited(multiply(add(static_cast<double>(logit), -largest), inverse_temperature));
    const double shifted = add(multiply(x, 1.4426950408889634074), 6755399441055744.0);
    const double n = add(shifted, -6755399441055744.0);
    const double r =
        add(__fma_rn(-n, 6.93147180369123816490e-01, x), -multiply(n, 1.90821492927058770002e-10));
    double p = add(multiply(r, 1.0 / 39916800), 1.0 / 3628800);
    p = add(multiply(p, r), 1.0 / 362880);
    p = add(multiply(p, r), 1.0 / 40320);
    p = add(multiply(p, r), 1.0 / 5040);
    p = add(multiply(p, r), 1.0 / 720);
    p = add(multiply(p, r), 1.0 / 120);
    p = add(multiply(p, r), 1.0 / 24);
    p = add(multiply(p, r), 1.0 / 6);
    p = add(multiply(p, r), 0.5);
    p = add(multiply(p, r), 1.0);
    p = add(multiply(p, r), 1.0);
    const int exponent = __double2loint(shifted) + (1023 + kDrawWeightBits);
    const double power = __hiloint2double(exponent << 20, 0);
    return static_cast<std::uint64_t>(__double_as_longlong(__fma_rn(p, power, kTwoTo52)));
  }
  // Below -100 a number that is about that: its weight is 0, too. Double precision is the time
  // here, so its high word is what is compared.
  static __device__ double limited(double x) {
    const auto high = static_cast<std::uint32_t>(__double2hiint(x));
    constexpr std::uint32_t kHighOfLowest = 0xc0590000u;
    return __hiloint2double(static_cast<int>(min(high, kHighOfLowest)), __double2loint(x));
  }
  // Whether `kept` keeps all: weights below 1 are 0 as they are.
  static __device__ bool keeps_all(const DrawRow& row) { return row.min_weight <= 1; }
  // 0 below min-p.
  static __device__ std::uint64_t kept(const DrawRow& row, std::uint64_t weight) {
    return static_cast<double>(weight) < row.min_weight ? 0 : weight;
  }
  __device__ std::uint64_t kept(const DrawRow& row, float logit) const {
    return kept(row, of(logit));
  }
};

// Tokens by their distance from the largest logit: 1/128 of what divides the weight by e, or of a
// logit for top-k alone. The last bin has all beyond; no weight there is above 0.
constexpr int kDrawBins = 4096;
constexpr std::uint32_t kDrawListed = 2048;

struct DrawBins {
  float largest;
  float scale;

  __device__ DrawBins(const DrawRow& row, float largest)
      : largest(largest),
        scale(128.0f * (row.top_k > 0 ? 1.0f : static_cast<float>(row.inverse_temperature))) {}
  // Ascends as logits descend: each of the operations is monotonic.
  __device__ int of(float logit) const {
    const float distance = __fmul_rn(__fsub_rn(largest, logit), scale);
    return distance < static_cast<float>(kDrawBins - 1) ? static_cast<int>(distance)
                                                        : kDrawBins - 1;
  }
};

struct ListedToken {
  std::int32_t token;
  float logit;
};

enum DrawFlags : std::uint32_t { kFoundNan = 1, kFoundPlusInf = 2, kFoundFinite = 4 };

struct DrawState {
  unsigned long long best;    // key of the largest logit, complement of its token
  unsigned long long total;   // of all weights (top-p without top-k)
  unsigned long long before;  // what the bins before the one of the limit measure
  std::uint32_t flags;
  std::uint32_t arrived;
  float largest;
  std::int32_t bin;          // in which the limit of top-k, or else of top-p, falls
  std::uint32_t num_listed;  // more than kDrawListed: the list is not whole
  bool is_done;
};

struct DrawWorkspace {
  DrawState* states;
  unsigned long long* all_bins;  // [rows][kDrawBins], zero between calls
  ListedToken* all_lists;        // [rows][kDrawListed]
  std::uint64_t* all_sums;       // [rows][chunks]
  std::uint32_t* all_keys;       // [rows][chunks]
  std::uint32_t* all_ties;       // [rows][chunks]
  std::int64_t num_chunks;

  __host__ __device__ static std::int64_t chunks_of(std::int64_t vocab) {
    return (vocab + kDrawChunk - 1) / kDrawChunk;
  }
  static std::size_t row_bytes(std::int64_t vocab) {
    return sizeof(DrawState) + sizeof(unsigned long long) * kDrawBins +
           sizeof(ListedToken) * kDrawListed + static_cast<std::size_t>(chunks_of(vocab)) * 16;
  }
  __host__ __device__ DrawWorkspace(std::uint8_t* memory, std::int64_t vocab, std::int64_t max_rows)
      : states(reinterpret_cast<DrawState*>(memory)), num_chunks(chunks_of(vocab)) {
    all_bins = reinterpret_cast<unsigned long long*>(states + max_rows);
    all_lists = reinterpret_cast<ListedToken*>(all_bins + max_rows * kDrawBins);
    all_sums = reinterpret_cast<std::uint64_t*>(all_lists + max_rows * kDrawListed);
    all_keys = reinterpret_cast<std::uint32_t*>(all_sums + max_rows * num_chunks);
    all_ties = all_keys + max_rows * num_chunks;
  }

  __device__ unsigned long long* bins(std::int64_t row) const { return all_bins + row * kDrawBins; }
  __device__ ListedToken* list(std::int64_t row) const { return all_lists + row * kDrawListed; }
  __device__ std::uint64_t* sums(std::int64_t row) const { return all_sums + row * num_chunks; }
  __device__ std::uint32_t* keys(std::int64_t row) const { return all_keys + row * num_chunks; }
  __device__ std::uint32_t* ties(std::int64_t row) const { return all_ties + row * num_chunks; }
};

// A lane's part of a chunk: token(i) and logits[i], all loaded before the first is looked at.
struct ChunkPart {
  static constexpr int kEach = static_cast<int>(kDrawChunk) / kWarp;
  std::int64_t first;
  float logits[kEach];

  __device__ __forceinline__ ChunkPart(const float* row, std::int64_t vocab, std::int64_t chunk)
      : first(chunk * kDrawChunk + threadIdx.x % kWarp) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) logits[i] = token(i) < vocab ? row[token(i)] : 0;
  }
  __device__ __forceinline__ std::int64_t token(int i) const { return first + i * kWarp; }
};

// f(token, logit) for the lane's tokens of a chunk.
template <typename Body>
__device__ __forceinline__ void for_chunk(const float* logits, std::int64_t vocab,
                                          std::int64_t chunk, Body&& body) {
  const ChunkPart part(logits, vocab, chunk);
#pragma unroll
  for (int i = 0; i < ChunkPart::kEach; ++i) {
    if (part.token(i) < vocab) body(part.token(i), part.logits[i]);
  }
}

// The same with the token's weight. All weights are computed first, so that their chains of
// operations run side by side.
template <typename Body>
__device__ __forceinline__ void for_chunk(const float* logits, std::int64_t vocab,
                                          std::int64_t chunk, const DrawWeights& weights,
                                          Body&& body) {
  const ChunkPart part(logits, vocab, chunk);
  std::uint64_t values[ChunkPart::kEach];
#pragma unroll
  for (int i = 0; i < ChunkPart::kEach; ++i) values[i] = weights.of(part.logits[i]);
#pragma unroll
  for (int i = 0; i < ChunkPart::kEach; ++i) {
    if (part.token(i) < vocab) body(part.token(i), part.logits[i], values[i]);
  }
}

// Shared memory has atomics of 32 bits; those of 64 are loops that wait for each other. The low
// half's addition says whether it carries.
__device__ __forceinline__ void add_shared(unsigned long long& sum, std::uint64_t value) {
  auto* halves = reinterpret_cast<std::uint32_t*>(&sum);
  const auto low = static_cast<std::uint32_t>(value);
  auto high = static_cast<std::uint32_t>(value >> 32);
  if (low != 0 && atomicAdd(halves, low) > ~low) ++high;
  if (high != 0) atomicAdd(halves + 1, high);
}

__device__ void publish(const DrawTokensArgs& args, const DrawRow& row, std::int32_t token) {
  args.tokens[row.slot] = token < 0 ? 0 : token;
  const std::uint64_t result = std::uint64_t{row.tag} << 32 | static_cast<std::uint32_t>(token);
  // One store of 8 bytes, which the host sees whole.
  *reinterpret_cast<volatile std::uint64_t*>(args.results + row.slot) = result;
}

// Keys above `key` measure `before` together, which is below the limit; with those equal to it the
// limit is reached, or nothing is left.
struct DrawCut {
  std::uint32_t key = 0;
  std::uint64_t before = 0;
};

// One for a few items; one a warp where many would meet in the same bins.
enum class HistogramCopies { kOne, kOneAWarp };

// What all keys share: the bits above `first`, a multiple of eight, and eight more.
struct SharedBits {
  std::uint32_t key = 0;
  int first = 24;

  static __device__ SharedBits of(std::uint32_t least, std::uint32_t most) {
    const int first = least == most ? 0 : (31 - __clz(least ^ most)) / 8 * 8;
    return {first == 24 ? 0 : least >> (first + 8) << (first + 8), first};
  }
};

// A radix descent, eight bits at a time, over histograms.
template <int kThreads>
class Histograms {
 public:
  // `visit(add)` calls add(key, measure) for every item, the same in each of the passes, with
  // measure() what the item counts for; every thread of the block comes here.
  template <typename Visit>
  __device__ DrawCut find(std::uint64_t limit, HistogramCopies how, const SharedBits& shared,
                          Visit&& visit) {
    const int copies = how == HistogramCopies::kOne ? 1 : kWarps;
    DrawCut cut{.key = shared.key};
    for (int shift = shared.first; shift >= 0; shift -= 8) {
      for (int i = threadIdx.x; i < copies * kBins; i += kThreads) (&sums_[0][0])[i] = 0;
      __syncthreads();
      const std::uint32_t prefix = cut.key;
      unsigned long long* mine = sums_[threadIdx.x / kWarp % copies];
      visit([&](std::uint32_t key, auto&& measure) {
        if (std::uint64_t{key} >> (shift + 8) == std::uint64_t{prefix} >> (shift + 8)) {
          add_shared(mine[key >> shift & (kBins - 1)], measure());
        }
      });
      __syncthreads();
      if (copies > 1) {
        for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
          unsigned long long sum = 0;
          for (int warp = 0; warp < kWarps; ++warp) sum += sums_[warp][bin];
          sums_[0][bin] = sum;
        }
        __syncthreads();
      }
      if (threadIdx.x < kWarp) choose(cut, limit, shift);
      __syncthreads();
      cut = chosen_;
      __syncthreads();
    }
    return cut;
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kBins = 256;

  // The digit in which the limit falls, or the last in use if all together stay below it. A lane
  // looks at eight bins, the first lane at the highest.
  __device__ void choose(DrawCut cut, std::uint64_t limit, int shift) {
    constexpr int kLaneBins = kBins / kWarp;
    const int lane = threadIdx.x;
    const int highest = kBins - 1 - lane * kLaneBins;
    std::uint64_t sum = 0;
    for (int i = 0; i < kLaneBins; ++i) sum += sums_[0][highest - i];
    std::uint64_t reached = sum;
    for (int step = 1; step < kWarp; step *= 2) {
      const std::uint64_t other = __shfl_up_sync(~0u, reached, step);
      if (lane >= step) reached += other;
    }
    const unsigned in_use = __ballot_sync(~0u, sum > 0);
    const unsigned enough = __ballot_sync(~0u, sum > 0 && cut.before + reached >= limit);
    const int owner = enough != 0 ? __ffs(enough) - 1 : in_use != 0 ? 31 - __clz(in_use) : 0;
    if (lane != owner) return;
    std::uint64_t before = cut.before + reached - sum;
    auto digit = static_cast<std::uint32_t>(kBins - 1);
    for (int bin = highest; bin > highest - kLaneBins; --bin) {
      if (sums_[0][bin] == 0) continue;
      digit = static_cast<std::uint32_t>(bin);
      cut.before = before;
      before += sums_[0][bin];
      if (before >= limit) break;
    }
    cut.key |= digit << shift;
    chosen_ = cut;
  }

  unsigned long long sums_[kWarps][kBins];
  DrawCut chosen_;
};

}  // namespace gptoss::cuda
