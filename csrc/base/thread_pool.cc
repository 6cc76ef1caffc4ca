#include "base/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>

#include "base/error.h"

namespace gptoss {
namespace {

using Clock = std::chrono::steady_clock;

// Inside a region the others are at work and will arrive; between regions of a generation the host
// samples and detokenises for some tens of microseconds. A sleep and its wake-up cost as much.
constexpr auto kBarrierSpin = std::chrono::microseconds(200);
constexpr auto kIdleSpin = std::chrono::microseconds(200);
constexpr int kSpinsPerClockRead = 64;

void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns once `value` differs from `old`; sleeps after `spin`.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old,
                     Clock::duration spin) {
  const Clock::time_point deadline = Clock::now() + spin;
  do {
    for (int i = 0; i < kSpinsPerClockRead; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      cpu_relax();
    }
  } while (Clock::now() < deadline);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

// Shared with the workers, so that a child of fork can leave its parent's state behind.
struct ThreadPool::State {
  std::mutex region_mutex;  // one region at a time
  alignas(64) std::atomic<std::uint32_t> region{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<std::uint32_t> generation{0};
  Function function = nullptr;
  void* context = nullptr;
  ThreadPool* pool = nullptr;
  int num_threads = 1;
  bool stop = false;
};

void Worker::barrier() {
  if (count_ > 1) pool_.barrier();
}

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), process_id_(getpid()) {
  GPTOSS_REQUIRE(InvalidArgument, num_threads >= 1 && num_threads <= kMaxThreads,
                 "[thread_pool] expected 1 to ", kMaxThreads, " threads, got ", num_threads,
                 "; give num_threads or GPT_OSS_NATIVE_THREADS in that range");
  start_workers();
}

ThreadPool::~ThreadPool() {
  if (process_id_ != getpid()) {  // the workers live in the parent
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  state_->stop = true;
  state_->region.fetch_add(1, std::memory_order_release);
  state_->region.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::start_workers() {
  state_ = std::make_shared<State>();
  state_->pool = this;
  state_->num_threads = num_threads_;
  for (int index = 1; index < num_threads_; ++index) {
    threads_.emplace_back(worker_main, state_, index);
  }
}

void ThreadPool::worker_main(std::shared_ptr<State> state, int index) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_for_change(state->region, seen, kIdleSpin);
    ++seen;
    if (state->stop) return;
    Worker worker(*state->pool, index, state->num_threads);
    state->function(state->context, worker);
    worker.barrier();  // the region ends when all have come
  }
}

void ThreadPool::run_erased(Function function, void* context) {
  if (process_id_ != getpid()) [[unlikely]] {  // before any lock: it may be held in the parent
    process_id_ = getpid();
    for (std::thread& thread : threads_) thread.detach();
    threads_.clear();
    start_workers();
  }
  const std::lock_guard lock(state_->region_mutex);
  Worker worker(*this, 0, num_threads_);
  if (num_threads_ == 1) {
    function(context, worker);
    return;
  }
  state_->function = function;
  state_->context = context;
  state_->region.fetch_add(1, std::memory_order_release);
  state_->region.notify_all();
  function(context, worker);
  worker.barrier();
}

void ThreadPool::barrier() {
  State& state = *state_;
  const std::uint32_t generation = state.generation.load(std::memory_order_relaxed);
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == state.num_threads) {
    state.arrived.store(0, std::memory_order_relaxed);
    state.generation.store(generation + 1, std::memory_order_release);
    state.generation.notify_all();
  } else {
    wait_for_change(state.generation, generation, kBarrierSpin);
  }
}

namespace {

// The first line of a small system file; empty when there is none.
std::string read_line(const std::string& path) {
  std::string line;
  if (std::FILE* file = std::fopen(path.c_str(), "re")) {
    char text[256];
    if (std::fgets(text, sizeof(text), file) != nullptr) line = text;
    std::fclose(file);
  }
  return line;
}

// Logical CPUs of the affinity mask, one for each physical core.
int usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string siblings =
        read_line(cat("/sys/devices/system/cpu/cpu", cpu, "/topology/thread_siblings_list"));
    cores.insert(siblings.empty() ? cat("cpu", cpu) : siblings);
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

// CPUs that the control group's quota pays for; 0 when there is none.
int quota_cores() {
  double quota = 0;
  double period = 0;
  const std::string v2 = read_line("/sys/fs/cgroup/cpu.max");  // "max 100000" or "200000 100000"
  const bool has_v2 = std::sscanf(v2.c_str(), "%lf %lf", &quota, &period) == 2;
  if (!has_v2) {
    quota = std::atof(read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").c_str());
    period = std::atof(read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us").c_str());
  }
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(quota / period)) : 0;
}

}  // namespace

int default_num_threads(int most) {
  if (const char* text = std::getenv("GPT_OSS_NATIVE_THREADS"); text != nullptr && *text != 0) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    GPTOSS_REQUIRE(InvalidArgument, *end == 0 && value >= 1 && value <= ThreadPool::kMaxThreads,
                   "[threads] expected GPT_OSS_NATIVE_THREADS to be 1 to ", ThreadPool::kMaxThreads,
                   ", got '", text, "'; unset it to use all cores");
    return static_cast<int>(value);
  }
  const int cores = usable_cores();
  const int quota = quota_cores();
  return std::clamp(quota > 0 ? std::min(cores, quota) : cores, 1, most);
}

}  // namespace gptoss
