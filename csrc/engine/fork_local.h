// State that a child of os.fork must not inherit: a mutex may be held by a thread that the child
// does not have. The process id is checked before every use, and a child gets a fresh value; the
// inherited one is left alone, since a thread of the parent may have been inside it.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

namespace gptoss {

template <typename T>
class ForkLocal {
 public:
  ForkLocal() : value_(new T), owner_(getpid()) {}
  ~ForkLocal() { delete value_.load(std::memory_order_acquire); }
  ForkLocal(const ForkLocal&) = delete;
  ForkLocal& operator=(const ForkLocal&) = delete;

  T& get() {
    const pid_t self = getpid();
    if (owner_.load(std::memory_order_acquire) != self) [[unlikely]]
      renew(self);
    return *value_.load(std::memory_order_acquire);
  }

 private:
  static constexpr pid_t kRenewing = -1;

  // Threads of the child may come here together: one makes the value, the others wait for it.
  void renew(pid_t self) {
    pid_t seen = owner_.load(std::memory_order_acquire);
    while (seen != self) {
      if (seen != kRenewing && owner_.compare_exchange_weak(seen, kRenewing)) {
        value_.store(new T, std::memory_order_release);
        owner_.store(self, std::memory_order_release);
        return;
      }
      std::this_thread::yield();
      seen = owner_.load(std::memory_order_acquire);
    }
  }

  std::atomic<T*> value_;
  std::atomic<pid_t> owner_;
};

// A mutex that is free in a fresh child. Lockable by the standard guards.
class ForkMutex {
 public:
  void lock() { mutex_.get().lock(); }
  bool try_lock() { return mutex_.get().try_lock(); }
  void unlock() { mutex_.get().unlock(); }

 private:
  ForkLocal<std::mutex> mutex_;
};

}  // namespace gptoss
