#include "base/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace gptoss {
namespace {

constexpr std::int64_t kGrain = 64 << 10;  // words a thread owns at a time: whole huge pages

// Independent sums, so that the loads and not the additions are waited for.
std::uint64_t sum_words(const std::uint64_t* words, std::int64_t count) {
  constexpr int kSums = 32;
  std::uint64_t sums[kSums] = {};
  for (std::int64_t i = 0; i + kSums <= count; i += kSums) {
    for (int j = 0; j < kSums; ++j) sums[j] += words[i + j];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double measure_read_bandwidth(std::size_t num_bytes, int num_threads, int repeats) {
  GPTOSS_REQUIRE(InvalidArgument, num_bytes >= (1u << 20) && repeats >= 1,
                 "[read_bandwidth] expected at least 1 MiB and one repeat, got ", num_bytes,
                 " bytes and ", repeats);
  const AlignedBuffer buffer(num_bytes, "a read bandwidth measurement");
  std::uint64_t* words = buffer.as<std::uint64_t>();
  const std::int64_t count = static_cast<std::int64_t>(num_bytes / sizeof(std::uint64_t));
  ThreadPool pool(num_threads > 0 ? num_threads : default_num_threads());
  pool.run([&](Worker& worker) {  // each thread touches its own pages first
    const Range mine = worker.share(count, kGrain);
    for (std::int64_t i = mine.begin; i < mine.end; ++i) {
      words[i] = static_cast<std::uint64_t>(i);
    }
  });
  std::atomic<std::uint64_t> sink{0};  // keeps the sums alive
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](Worker& worker) {
      const Range mine = worker.share(count, kGrain);
      sink.fetch_add(sum_words(words + mine.begin, mine.size()), std::memory_order_relaxed);
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(num_bytes) / elapsed.count());
  }
  return best;
}

}  // namespace gptoss
