#include "engine/page_pool.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace gptoss {
namespace {

// A token that opens a page should not wait for the system; a few pages absorb forks and rewinds.
constexpr std::size_t kFreePagesKept = 8;

int index(KvGroup group) {
  return static_cast<int>(group);
}
int index(PageHolder holder) {
  return static_cast<int>(holder);
}

}  // namespace

PagePool::~PagePool() {
  for (int g = 0; g < kNumKvGroups; ++g) {
    for (const PageId page : groups_[g].free) backend_.free_page(static_cast<KvGroup>(g), page);
  }
}

PageId PagePool::allocate(KvGroup group, PageHolder holder) {
  Group& pages = groups_[index(group)];
  {
    const std::lock_guard lock(mutex_);
    if (!pages.free.empty()) {
      const PageId page = pages.free.back();
      pages.free.pop_back();
      pages.counts[static_cast<std::size_t>(page)].refs[index(holder)] = 1;
      return page;
    }
    // Room for the bookkeeping first, so that a page from the backend cannot be lost.
    if (pages.free.capacity() <= static_cast<std::size_t>(pages.allocated)) {
      pages.free.reserve(2 * static_cast<std::size_t>(pages.allocated) + 64);
    }
  }
  const PageId page = backend_.allocate_page(group);
  const std::lock_guard lock(mutex_);
  try {
    GPTOSS_REQUIRE(DeviceError, page >= 0, "[allocate_page] expected a page id, the backend gave ",
                   page, "; this is a bug of the backend");
    if (pages.counts.size() <= static_cast<std::size_t>(page)) {
      pages.counts.resize(static_cast<std::size_t>(page) + 1);
    }
  } catch (...) {
    backend_.free_page(group, page);
    throw;
  }
  Counts& counts = pages.counts[static_cast<std::size_t>(page)];
  counts = Counts{};
  counts.refs[index(holder)] = 1;
  counts.allocated = true;
  ++pages.allocated;
  return page;
}

PageId PagePool::copy(KvGroup group, PageId page, PageHolder holder) {
  const PageId fresh = allocate(group, holder);
  try {
    backend_.copy_page(group, page, fresh);
  } catch (...) {
    release(group, {&fresh, 1}, holder);
    throw;
  }
  return fresh;
}

void PagePool::trim() noexcept {
  for (int g = 0; g < kNumKvGroups; ++g) {
    const std::lock_guard lock(mutex_);
    Group& pages = groups_[g];
    while (pages.free.size() > kFreePagesKept) {
      const PageId page = pages.free.back();
      pages.free.pop_back();
      pages.counts[static_cast<std::size_t>(page)] = Counts{};
      --pages.allocated;
      backend_.free_page(static_cast<KvGroup>(g), page);
    }
  }
}

void PagePool::add_ref(KvGroup group, std::span<const PageId> pages, PageHolder holder) noexcept {
  if (pages.empty()) return;
  const std::lock_guard lock(mutex_);
  for (const PageId page : pages) {
    ++groups_[index(group)].counts[static_cast<std::size_t>(page)].refs[index(holder)];
  }
}

void PagePool::release(KvGroup group, std::span<const PageId> pages, PageHolder holder) noexcept {
  if (pages.empty()) return;
  const std::lock_guard lock(mutex_);
  Group& held = groups_[index(group)];
  for (const PageId page : pages) {
    Counts& counts = held.counts[static_cast<std::size_t>(page)];
    --counts.refs[index(holder)];
    if (counts.total() == 0) held.free.push_back(page);
  }
}

bool PagePool::is_shared(KvGroup group, PageId page) const {
  const std::lock_guard lock(mutex_);
  return groups_[index(group)].counts[static_cast<std::size_t>(page)].total() > 1;
}

PageUsage PagePool::usage(KvGroup group) const {
  const std::lock_guard lock(mutex_);
  const Group& pages = groups_[index(group)];
  PageUsage usage;
  usage.allocated = pages.allocated;
  usage.free = static_cast<std::int64_t>(pages.free.size());
  for (const Counts& counts : pages.counts) {
    if (counts.refs[index(PageHolder::kSession)] == 0 && counts.total() > 0) ++usage.only_marks;
  }
  return usage;
}

PageList::PageList(const PageList& other, std::int64_t end, PageHolder holder)
    : pool_(other.pool_),
      group_(other.group_),
      holder_(holder),
      first_page_(other.first_page_),
      pages_(other.pages_.begin(),
             other.pages_.begin() +
                 std::max<std::int64_t>(std::min(end, other.end_page()) - other.first_page_, 0)) {
  pool_->add_ref(group_, pages_, holder_);
}

void PageList::replace(std::int64_t number, PageId page) noexcept {
  PageId& held = pages_[static_cast<std::size_t>(number - first_page_)];
  pool_->release(group_, {&held, 1}, holder_);
  held = page;
}

void PageList::truncate(std::int64_t end) noexcept {
  if (end >= end_page()) return;
  const auto kept = static_cast<std::size_t>(std::max<std::int64_t>(end - first_page_, 0));
  pool_->release(group_, std::span<const PageId>(pages_).subspan(kept), holder_);
  pages_.resize(kept);
}

void PageList::drop_before(std::int64_t first) noexcept {
  if (first <= first_page_) return;
  const std::int64_t count = std::min(first, end_page()) - first_page_;
  pool_->release(group_, std::span<const PageId>(pages_).first(static_cast<std::size_t>(count)),
                 holder_);
  pages_.erase(pages_.begin(), pages_.begin() + count);
  first_page_ += count;
}

}  // namespace gptoss
