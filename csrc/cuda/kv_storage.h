// Pages of keys and values in device memory, cut from slabs: one allocation serves many pages, and
// a slab goes back to the device when its last page does.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <span>
#include <vector>

#include "cuda/device.h"
#include "model/kv_plan.h"

namespace gptoss::cuda {

class KvStorage {
 public:
  explicit KvStorage(const KvPlan& plan) : plan_(plan) {}

  PageId allocate(KvGroup group);
  void free(KvGroup group, PageId page) noexcept;
  // step.h has its layout.
  __nv_bfloat16* page(KvGroup group, PageId page) const;
  std::size_t num_bytes() const;  // of the slabs

 private:
  struct Slab {
    DeviceBuffer memory;  // empty: given back, its ids wait for another
    std::vector<PageId> unused;
  };
  struct Group {
    std::vector<Slab> slabs;
    std::int64_t pages_a_slab = 0;
  };
  Group& group(KvGroup group) { return groups_[static_cast<int>(group)]; }
  Slab& slab_with_room(KvGroup group);

  const KvPlan& plan_;
  Group groups_[kNumKvGroups];
};

// A page between the device's layout and the plan's, whose keys are transposed. Host memory.
void page_to_plan(const KvPlan& plan, KvGroup group, std::span<const std::byte> page,
                  std::span<std::byte> out);
void page_from_plan(const KvPlan& plan, KvGroup group, std::span<const std::byte> page,
                    std::span<std::byte> out);

}  // namespace gptoss::cuda
