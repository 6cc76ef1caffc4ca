#include "cuda/kv_storage.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace gptoss::cuda {
namespace {

// 21 pages of the 20b: 1,365 tokens of one session. Large enough that allocating is rare, small
// enough to be given back.
constexpr std::size_t kSlabBytes = std::size_t{32} << 20;

}  // namespace

KvStorage::Slab& KvStorage::slab_with_room(KvGroup kv_group) {
  Group& g = group(kv_group);
  const std::size_t page_bytes = plan_.page_bytes(kv_group);
  if (g.pages_a_slab == 0) {
    g.pages_a_slab = static_cast<std::int64_t>(std::max<std::size_t>(kSlabBytes / page_bytes, 1));
  }
  for (Slab& slab : g.slabs) {
    if (slab.memory.num_bytes() > 0 && !slab.unused.empty()) return slab;
  }
  DeviceBuffer memory(static_cast<std::size_t>(g.pages_a_slab) * page_bytes,
                      "a slab of the key-value cache");
  for (Slab& slab : g.slabs) {
    if (slab.memory.num_bytes() > 0) continue;
    slab.memory = std::move(memory);
    return slab;
  }
  Slab& slab = g.slabs.emplace_back();
  const std::int64_t first = (std::ssize(g.slabs) - 1) * g.pages_a_slab;
  for (std::int64_t page = g.pages_a_slab; page-- > 0;) {
    slab.unused.push_back(static_cast<PageId>(first + page));
  }
  slab.memory = std::move(memory);
  return slab;
}

PageId KvStorage::allocate(KvGroup kv_group) {
  Slab& slab = slab_with_room(kv_group);
  const PageId page = slab.unused.back();
  slab.unused.pop_back();
  return page;
}

void KvStorage::free(KvGroup kv_group, PageId page) noexcept {
  Group& g = group(kv_group);
  Slab& slab = g.slabs[static_cast<std::size_t>(page / g.pages_a_slab)];
  slab.unused.push_back(page);  // has held all of them before
  if (std::ssize(slab.unused) < g.pages_a_slab) return;
  // One empty slab stays, so that a session at a slab's edge does not allocate again and again.
  const auto is_empty = [&](const Slab& other) {
    return other.memory.num_bytes() > 0 && std::ssize(other.unused) == g.pages_a_slab;
  };
  if (std::ranges::count_if(g.slabs, is_empty) > 1) slab.memory = DeviceBuffer();
}

__nv_bfloat16* KvStorage::page(KvGroup kv_group, PageId page) const {
  const Group& g = groups_[static_cast<int>(kv_group)];
  const Slab& slab = g.slabs[static_cast<std::size_t>(page / g.pages_a_slab)];
  const auto at = static_cast<std::size_t>(page % g.pages_a_slab) * plan_.page_bytes(kv_group);
  return reinterpret_cast<__nv_bfloat16*>(slab.memory.as<std::byte>() + at);
}

std::size_t KvStorage::num_bytes() const {
  std::size_t total = 0;
  for (const Group& g : groups_) {
    for (const Slab& slab : g.slabs) total += slab.memory.num_bytes();
  }
  return total;
}

namespace {

// Keys of every layer and head transposed from [rows][cols] to [cols][rows]; values as they are.
void convert(const KvPlan& plan, KvGroup group, std::int64_t rows, std::int64_t cols,
             std::span<const std::byte> page, std::span<std::byte> out) {
  const std::int64_t elements = kPageTokens * kHeadDim;
  const std::int64_t layers = plan.num_group_layers[static_cast<int>(group)];
  const auto* from = reinterpret_cast<const std::uint16_t*>(page.data());
  auto* to = reinterpret_cast<std::uint16_t*>(out.data());
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    for (std::int64_t head = 0; head < plan.num_kv_heads; ++head) {
      for (std::int64_t i = 0; i < elements; ++i) {
        to[i % cols * rows + i / cols] = from[i];
      }
      from += elements;
      to += elements;
    }
    std::memcpy(to, from, static_cast<std::size_t>(plan.num_kv_heads * elements) * 2);
    from += plan.num_kv_heads * elements;
    to += plan.num_kv_heads * elements;
  }
}

}  // namespace

void page_to_plan(const KvPlan& plan, KvGroup group, std::span<const std::byte> page,
                  std::span<std::byte> out) {
  convert(plan, group, kPageTokens, kHeadDim, page, out);
}

void page_from_plan(const KvPlan& plan, KvGroup group, std::span<const std::byte> page,
                    std::span<std::byte> out) {
  convert(plan, group, kHeadDim, kPageTokens, page, out);
}

}  // namespace gptoss::cuda
