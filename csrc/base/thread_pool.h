// Fork-join threads for short parallel regions. The caller is thread 0; workers spin for a moment
// after a region and then sleep, so that an idle session costs no CPU.
//
// A region runs one function on every thread; inside it, threads meet at `Worker::barrier()` and
// share work either in equal parts (`share`) or by taking chunks from a counter (`WorkCounter`).
// The function must not throw: validate first.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/view.h"

namespace gptoss {

class ThreadPool;

// One thread's handle inside a region.
class Worker {
 public:
  Worker(ThreadPool& pool, int index, int count) : pool_(pool), index_(index), count_(count) {}

  int index() const { return index_; }
  int count() const { return count_; }

  // All threads of the region arrive before any leaves; orders every write before against every
  // read after.
  void barrier();

  // This thread's equal share of [0, total), cut at multiples of `grain`.
  Range share(std::int64_t total, std::int64_t grain = 1) const {
    const std::int64_t chunks = (total + grain - 1) / grain;
    const std::int64_t begin = chunks * index_ / count_ * grain;
    const std::int64_t end = chunks * (index_ + 1) / count_ * grain;
    return {begin < total ? begin : total, end < total ? end : total};
  }

 private:
  ThreadPool& pool_;
  int index_;
  int count_;
};

// A shared counter from which threads take chunks of uneven work. Reset only between barriers.
class alignas(64) WorkCounter {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  Range take(std::int64_t total, std::int64_t grain) {
    const std::int64_t begin = next_.fetch_add(grain, std::memory_order_relaxed);
    if (begin >= total) return {total, total};
    return {begin, begin + grain < total ? begin + grain : total};
  }

 private:
  std::atomic<std::int64_t> next_{0};
};

class ThreadPool {
 public:
  // Starts num_threads - 1 workers. Throws InvalidArgument below 1 or above kMaxThreads.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = 1024;

  int num_threads() const { return num_threads_; }

  // Runs body(Worker&) on every thread. Regions of one pool run one after another; a child of
  // os.fork gets fresh workers at its first region, since threads do not survive a fork.
  template <typename Body>
  void run(Body&& body) {
    run_erased([](void* context, Worker& worker) { (*static_cast<Body*>(context))(worker); },
               const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  friend class Worker;
  using Function = void (*)(void* context, Worker& worker);
  struct State;

  void run_erased(Function function, void* context);
  void start_workers();
  void barrier();
  static void worker_main(std::shared_ptr<State> state, int index);

  int num_threads_;
  std::int64_t process_id_;
  std::shared_ptr<State> state_;
  std::vector<std::thread> threads_;
};

// As many threads as this process may really use: affinity mask, cgroup quota, physical cores; but
// no more than `most`. GPT_OSS_NATIVE_THREADS overrides all of it. At least 1.
int default_num_threads(int most = ThreadPool::kMaxThreads);

}  // namespace gptoss
