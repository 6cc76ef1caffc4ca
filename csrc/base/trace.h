// Where the time of a step goes: named zones, summed. Off unless enabled, then two clock reads a
// zone on thread 0 only, so that the zones of a step add up to the step.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

namespace gptoss {

struct ZoneTotal {
  std::int64_t count = 0;
  double seconds = 0;
};

class Trace {
 public:
  void enable(bool on) { enabled_ = on; }
  bool enabled() const { return enabled_; }
  void add(const std::string& zone, double seconds, std::int64_t times = 1) {
    ZoneTotal& total = totals_[zone];
    total.count += times;
    total.seconds += seconds;
  }
  // Something that takes no time, so many times.
  void count(const std::string& what, std::int64_t times) { add(what, 0, times); }
  const std::map<std::string, ZoneTotal>& totals() const { return totals_; }
  void clear() { totals_.clear(); }

 private:
  bool enabled_ = false;
  std::map<std::string, ZoneTotal> totals_;
};

// Adds the time between its construction and destruction, or between `next` calls.
class Zone {
 public:
  using Clock = std::chrono::steady_clock;

  // `trace` may be null (not thread 0).
  Zone(Trace* trace, const char* name)
      : trace_(trace != nullptr && trace->enabled() ? trace : nullptr), name_(name) {
    if (trace_ != nullptr) start_ = Clock::now();
  }
  ~Zone() { close(); }
  Zone(const Zone&) = delete;
  Zone& operator=(const Zone&) = delete;

  void next(const char* name) {
    if (trace_ == nullptr) return;
    record(name_);
    name_ = name;
  }

  // Runs `meet`, a barrier, and counts its time as the zone's own waiting: "name: wait".
  template <typename Meet>
  void wait(Meet&& meet) {
    if (trace_ == nullptr) return meet();
    record(name_, 0);  // it goes on, or ends here
    meet();
    record(std::string(name_) + ": wait");
  }

 private:
  void close() {
    if (trace_ != nullptr) record(name_);
  }
  void record(const std::string& name, std::int64_t times = 1) {
    const Clock::time_point now = Clock::now();
    trace_->add(name, std::chrono::duration<double>(now - start_).count(), times);
    start_ = now;
  }

  Trace* trace_;
  const char* name_;
  Clock::time_point start_;
};

}  // namespace gptoss
