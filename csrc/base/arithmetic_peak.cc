#include "base/arithmetic_peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>

#include "base/cpu_features.h"
#include "base/error.h"
#include "base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gptoss {
namespace {

constexpr int kChains = 12;  // more than latency times units anywhere: 4 to 5 cycles, 2 a cycle
constexpr int kWindows = 5;
constexpr std::int64_t kSteps = 1000;  // between two looks at the clock

// Each loop runs `steps` times kChains multiply-adds that depend only on their own chain, and
// returns something made of all of them, so that none is left out.
struct Loop {
  const char* name;
  double operations;  // a step
  bool (*supported)();
  float (*run)(std::int64_t steps);
};

float run_fma_scalar(std::int64_t steps) {
  volatile float source = 0.5f;
  const float x = source;
  float sums[kChains] = {};
  for (std::int64_t step = 0; step < steps; ++step) {
    for (float& sum : sums) sum = sum * x + x;
  }
  float total = 0;
  for (const float sum : sums) total += sum;
  return total;
}

#if defined(__x86_64__)

// The same loop over vectors; intrinsics need a function whose target has them, templates and
// lambdas do not inherit it.
#define GPTOSS_PEAK_LOOP(NAME, TARGET, VECTOR, ZERO, ONES, STEP, LOW)    \
  __attribute__((target(TARGET))) float run_##NAME(std::int64_t steps) { \
    volatile int source = 0x3f003f00;                                    \
    const auto x = ONES;                                                 \
    VECTOR sums[kChains];                                                \
    for (VECTOR& sum : sums) sum = ZERO;                                 \
    for (std::int64_t step = 0; step < steps; ++step) {                  \
      _Pragma("GCC unroll 12") for (VECTOR& sum : sums) sum = STEP;      \
    }                                                                    \
    float total = 0;                                                     \
    for (const VECTOR& sum : sums) total += static_cast<float>(LOW);     \
    return total;                                                        \
  }

GPTOSS_PEAK_LOOP(fma_avx2, "avx2,fma", __m256, _mm256_setzero_ps(),
                 _mm256_castsi256_ps(_mm256_set1_epi32(source)), _mm256_fmadd_ps(sum, x, x),
                 _mm256_cvtss_f32(sum))
GPTOSS_PEAK_LOOP(vnni_avx2, "avx2,avxvnni", __m256i, _mm256_setzero_si256(),
                 _mm256_set1_epi32(source), _mm256_dpbusd_avx_epi32(sum, x, x),
                 _mm256_cvtsi256_si32(sum))
GPTOSS_PEAK_LOOP(fma_avx512, "avx512f", __m512, _mm512_setzero_ps(),
                 _mm512_castsi512_ps(_mm512_set1_epi32(source)), _mm512_fmadd_ps(sum, x, x),
                 _mm512_cvtss_f32(sum))
GPTOSS_PEAK_LOOP(vnni_avx512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(),
                 _mm512_set1_epi32(source), _mm512_dpbusd_epi32(sum, x, x),
                 _mm512_cvtsi512_si32(sum))
GPTOSS_PEAK_LOOP(bf16_avx512, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(),
                 (__m512bh)_mm512_set1_epi32(source), _mm512_dpbf16_ps(sum, x, x),
                 _mm512_cvtss_f32(sum))
#undef GPTOSS_PEAK_LOOP

bool has_fma_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_vnni_avx2() {
  return __builtin_cpu_supports("avxvnni");
}
bool has_fma_avx512() {
  return __builtin_cpu_supports("avx512f");
}
bool has_vnni_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
}
bool has_bf16_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16");
}

#if defined(__linux__)

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;

// Palette 1 of Intel's manual, volume 1, chapter 18: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {kTileBytes, kTileBytes, kTileBytes, kTileBytes,
                                 kTileBytes, kTileBytes, kTileBytes, kTileBytes};
  std::uint8_t rows[16] = {kTileRows, kTileRows, kTileRows, kTileRows,
                           kTileRows, kTileRows, kTileRows, kTileRows};
};
static_assert(sizeof(TileConfig) == 64);
// Not on the stack: GCC 12 takes ldtilecfg to read 8 bytes and drops the stores of the others.
constexpr TileConfig kTileConfig;

bool has_amx_int8() {
  return __builtin_cpu_supports("amx-int8") && tiles_granted();
}
bool has_amx_bf16() {
  return __builtin_cpu_supports("amx-bf16") && tiles_granted();
}

// Four sums, two tiles of each factor: as a matrix product holds them, and four times 16 cycles
// cover the latency of 52.
#define GPTOSS_TILE_LOOP(NAME, TARGET, STEP)                                         \
  __attribute__((target("amx-tile," TARGET))) float run_##NAME(std::int64_t steps) { \
    _tile_loadconfig(&kTileConfig);                                                  \
    _tile_zero(0);                                                                   \
    _tile_zero(1);                                                                   \
    _tile_zero(2);                                                                   \
    _tile_zero(3);                                                                   \
    _tile_zero(4);                                                                   \
    _tile_zero(5);                                                                   \
    _tile_zero(6);                                                                   \
    _tile_zero(7);                                                                   \
    for (std::int64_t step = 0; step < steps; ++step) {                              \
      STEP(0, 4, 6);                                                                 \
      STEP(1, 4, 7);                                                                 \
      STEP(2, 5, 6);                                                                 \
      STEP(3, 5, 7);                                                                 \
    }                                                                                \
    _tile_release();                                                                 \
    return 0;                                                                        \
  }

GPTOSS_TILE_LOOP(amx_int8, "amx-int8", _tile_dpbssd)
GPTOSS_TILE_LOOP(amx_bf16, "amx-bf16", _tile_dpbf16ps)
#undef GPTOSS_TILE_LOOP

#endif  // __linux__
#endif  // __x86_64__

constexpr Loop kLoops[] = {
    {"fma_scalar", 2.0 * kChains, [] { return true; }, run_fma_scalar},
#if defined(__x86_64__)
    {"fma_avx2", 2.0 * 8 * kChains, has_fma_avx2, run_fma_avx2},
    {"vnni_avx2", 2.0 * 32 * kChains, has_vnni_avx2, run_vnni_avx2},
    {"fma_avx512", 2.0 * 16 * kChains, has_fma_avx512, run_fma_avx512},
    {"vnni_avx512", 2.0 * 64 * kChains, has_vnni_avx512, run_vnni_avx512},
    {"bf16_avx512", 2.0 * 32 * kChains, has_bf16_avx512, run_bf16_avx512},
#endif
#if defined(__x86_64__) && defined(__linux__)
    {"amx_int8", 4 * 2.0 * kTileRows * 16 * kTileBytes, has_amx_int8, run_amx_int8},
    {"amx_bf16", 4 * 2.0 * kTileRows * 16 * (kTileBytes / 2), has_amx_bf16, run_amx_bf16},
#endif
};

}  // namespace

std::vector<std::pair<std::string, double>> measure_arithmetic_peaks(int num_threads,
                                                                     double seconds) {
  GPTOSS_REQUIRE(InvalidArgument, seconds > 0 && std::isfinite(seconds),
                 "[arithmetic_peaks] expected seconds above 0, got ", seconds);
  using Clock = std::chrono::steady_clock;
  ThreadPool pool(num_threads > 0 ? num_threads : default_num_threads());
  std::atomic<float> sink{0};
  std::vector<std::pair<std::string, double>> peaks;
  for (const Loop& loop : kLoops) {
    if (!loop.supported()) continue;
    double best = 0;
    for (int window = 0; window < kWindows; ++window) {
      std::atomic<std::int64_t> steps{0};
      const auto start = Clock::now();
      const auto end = start + std::chrono::duration<double>(seconds / kWindows);
      pool.run([&](Worker&) {
        std::int64_t mine = 0;
        for (; Clock::now() < end; mine += kSteps) {
          sink.store(loop.run(kSteps), std::memory_order_relaxed);
        }
        steps.fetch_add(mine, std::memory_order_relaxed);
      });
      const std::chrono::duration<double> elapsed = Clock::now() - start;
      best = std::max(best, static_cast<double>(steps) * loop.operations / elapsed.count());
    }
    peaks.emplace_back(loop.name, best);
  }
  return peaks;
}

}  // namespace gptoss
