// Reference-counted pages of keys and values over a backend.
//
// Threads: reference counts may change on any thread. What calls the backend (`allocate`, `copy`,
// `trim`) needs the scheduler's backend lock; a page released meanwhile waits in the free list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/fork_local.h"
#include "model/kv_plan.h"

namespace gptoss {

// Who refers to a page; the memory report tells marks from live sessions.
enum class PageHolder { kSession, kMark };

struct PageUsage {
  std::int64_t allocated = 0;   // pages the backend holds, the free ones included
  std::int64_t free = 0;        // kept for the next allocation
  std::int64_t only_marks = 0;  // referred to by marks alone
};

class PagePool {
 public:
  explicit PagePool(Backend& backend) : backend_(backend) {}
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // One reference for the caller. Throws OutOfMemory; nothing has changed then.
  PageId allocate(KvGroup group, PageHolder holder);
  // A private copy of a page's contents, one reference.
  PageId copy(KvGroup group, PageId page, PageHolder holder);
  // Gives free pages beyond a small reserve back to the backend.
  void trim() noexcept;

  void add_ref(KvGroup group, std::span<const PageId> pages, PageHolder holder) noexcept;
  void release(KvGroup group, std::span<const PageId> pages, PageHolder holder) noexcept;
  bool is_shared(KvGroup group, PageId page) const;
  PageUsage usage(KvGroup group) const;

 private:
  struct Counts {
    std::int32_t refs[2] = {0, 0};  // by holder
    bool allocated = false;
    std::int32_t total() const { return refs[0] + refs[1]; }
  };
  struct Group {
    std::vector<Counts> counts;  // by page id; backends number pages from 0
    std::vector<PageId> free;    // capacity for every page, so that a release never allocates
    std::int64_t allocated = 0;
  };

  Backend& backend_;
  mutable ForkMutex mutex_;
  Group groups_[kNumKvGroups];
};

// Consecutive pages of one sequence, each with one reference.
class PageList {
 public:
  PageList(PagePool& pool, KvGroup group, PageHolder holder)
      : pool_(&pool), group_(group), holder_(holder) {}
  // Shares pages [first_page(), end) of another list.
  PageList(const PageList& other, std::int64_t end, PageHolder holder);
  PageList(const PageList& other) : PageList(other, other.end_page(), other.holder_) {}
  PageList(PageList&& other) noexcept = default;
  PageList& operator=(PageList other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(group_, other.group_);
    std::swap(holder_, other.holder_);
    std::swap(first_page_, other.first_page_);
    pages_.swap(other.pages_);
    return *this;
  }
  ~PageList() { pool_->release(group_, pages_, holder_); }

  std::int64_t first_page() const { return first_page_; }
  std::int64_t end_page() const { return first_page_ + static_cast<std::int64_t>(pages_.size()); }
  std::span<const PageId> pages() const { return pages_; }
  PageId page(std::int64_t number) const {
    return pages_[static_cast<std::size_t>(number - first_page_)];
  }

  void reserve_capacity(std::int64_t end) {
    if (end > first_page_) pages_.reserve(static_cast<std::size_t>(end - first_page_));
  }
  // Moves the (empty) list to begin at another page.
  void start_at(std::int64_t page) { first_page_ = page; }
  // The next page; takes over the caller's reference. Capacity must be there.
  void append(PageId page) noexcept { pages_.push_back(page); }
  // Puts `page` in the place of the one there, which is released.
  void replace(std::int64_t number, PageId page) noexcept;
  void truncate(std::int64_t end) noexcept;
  void drop_before(std::int64_t first) noexcept;

 private:
  PagePool* pool_;
  KvGroup group_;
  PageHolder holder_;
  std::int64_t first_page_ = 0;
  std::vector<PageId> pages_;
};

}  // namespace gptoss
