#include "cpu/kv_storage.h"

namespace gptoss::cpu {

PageId KvStorage::allocate(KvGroup group) {
  Group& g = groups_[static_cast<int>(group)];
  AlignedBuffer memory(plan_.page_bytes(group), "a page of the key-value cache");
  if (g.unused.empty()) {
    g.pages.emplace_back();
    g.unused.reserve(g.pages.size());  // so that free() cannot fail
    g.unused.push_back(static_cast<PageId>(g.pages.size() - 1));
  }
  const PageId id = g.unused.back();
  g.unused.pop_back();
  num_bytes_ += memory.num_bytes();
  g.pages[static_cast<std::size_t>(id)] = std::move(memory);
  return id;
}

void KvStorage::free(KvGroup group, PageId page) noexcept {
  Group& g = groups_[static_cast<int>(group)];
  AlignedBuffer& memory = g.pages[static_cast<std::size_t>(page)];
  num_bytes_ -= memory.num_bytes();
  memory = AlignedBuffer();
  g.unused.push_back(page);
}

std::span<std::byte> KvStorage::page(KvGroup group, PageId page) const {
  const Group& g = groups_[static_cast<int>(group)];
  return {g.pages[static_cast<std::size_t>(page)].as<std::byte>(), plan_.page_bytes(group)};
}

}  // namespace gptoss::cpu
