// Pages of keys and values in host memory. Each page is its own allocation, so that a freed one
// goes back to the system.
#pragma once

#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "model/kv_plan.h"

namespace gptoss::cpu {

class KvStorage {
 public:
  explicit KvStorage(const KvPlan& plan) : plan_(plan) {}

  PageId allocate(KvGroup group);
  void free(KvGroup group, PageId page) noexcept;
  std::span<std::byte> page(KvGroup group, PageId page) const;
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  struct Group {
    std::vector<AlignedBuffer> pages;
    std::vector<PageId> unused;  // ids without memory
  };

  const KvPlan& plan_;
  Group groups_[kNumKvGroups];
  std::size_t num_bytes_ = 0;
};

}  // namespace gptoss::cpu
