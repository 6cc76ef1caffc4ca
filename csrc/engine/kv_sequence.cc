#include "engine/kv_sequence.h"

#include <algorithm>
#include <utility>

namespace gptoss {

KvSequence::KvSequence(PagePool& pool, const KvPlan& plan)
    : pool_(&pool),
      plan_(&plan),
      lists_{PageList(pool, KvGroup::kFull, PageHolder::kSession),
             PageList(pool, KvGroup::kWindow, PageHolder::kSession)} {}

void KvSequence::reserve(std::int64_t num_tokens) {
  const std::int64_t end = num_pages(length_ + num_tokens);
  const std::int64_t first_written = length_ / kPageTokens;
  try {
    for (int g = 0; g < kNumKvGroups; ++g) {
      if (!has_layers(g)) continue;
      const KvGroup group = static_cast<KvGroup>(g);
      PageList& list = lists_[g];
      list.reserve_capacity(end);
      // Only the last page can be partly filled; it is written if the length is inside it.
      if (first_written < list.end_page() && pool_->is_shared(group, list.page(first_written))) {
        list.replace(first_written,
                     pool_->copy(group, list.page(first_written), PageHolder::kSession));
      }
      while (list.end_page() < end) list.append(pool_->allocate(group, PageHolder::kSession));
    }
  } catch (...) {
    unreserve();
    throw;
  }
}

void KvSequence::unreserve() noexcept {
  for (PageList& list : lists_) list.truncate(num_pages(length_));
}

void KvSequence::advance(std::int64_t num_tokens) noexcept {
  length_ += num_tokens;
  if (has_layers(static_cast<int>(KvGroup::kWindow))) {
    window().drop_before(first_kept_page(*plan_, length_));
  }
}

void KvSequence::fill(Segment& segment) const {
  segment.position = length_;
  for (int g = 0; g < kNumKvGroups; ++g) {
    segment.pages[g] = lists_[g].pages();
    segment.first_page[g] = lists_[g].first_page();
  }
}

KvSnapshot KvSequence::snapshot(PageHolder holder) const {
  return {length_, PageList(window(), num_pages(length_), holder)};
}

void KvSequence::restore(KvSnapshot snapshot) noexcept {
  window() = std::move(snapshot.window);
  length_ = snapshot.position;
  lists_[static_cast<int>(KvGroup::kFull)].truncate(num_pages(length_));
}

std::int64_t KvSequence::mark() {
  const auto at = std::lower_bound(
      marks_.begin(), marks_.end(), length_,
      [](const KvSnapshot& mark, std::int64_t position) { return mark.position < position; });
  if (at != marks_.end() && at->position == length_) return length_;
  marks_.insert(at, snapshot(PageHolder::kMark));
  if (marks_.size() > kMaxMarks) marks_.erase(marks_.begin());
  return length_;
}

bool KvSequence::window_serves(const PageList& window, std::int64_t position) const {
  return !has_layers(static_cast<int>(KvGroup::kWindow)) ||
         window.first_page() <= plan_->first_visible_page(KvGroup::kWindow, position);
}

std::int64_t KvSequence::rewind(std::int64_t position) {
  if (position >= length_) return length_;
  // Every mark is a state of the same tokens, so a later one serves too if it reaches far enough
  // back.
  const KvSnapshot* source = nullptr;
  std::int64_t target = 0;
  const bool live = window_serves(window(), position);
  if (live) {
    target = position;
  } else {
    for (const KvSnapshot& mark : marks_) {
      if (mark.position >= position && window_serves(mark.window, position)) {
        source = &mark;
        target = position;
        break;
      }
      if (mark.position < position) {
        source = &mark;
        target = mark.position;
      }
    }
  }
  if (!live) {
    window() = source == nullptr
                   ? PageList(*pool_, KvGroup::kWindow, PageHolder::kSession)
                   : PageList(source->window, num_pages(target), PageHolder::kSession);
  }
  length_ = target;
  for (PageList& list : lists_) list.truncate(num_pages(length_));
  while (!marks_.empty() && marks_.back().position > length_) marks_.pop_back();
  return length_;
}

void KvSequence::allocate_for_restore(std::int64_t length, std::int64_t first_window_page) {
  const std::int64_t end = num_pages(length);
  for (int g = 0; g < kNumKvGroups; ++g) {
    if (!has_layers(g)) continue;
    const KvGroup group = static_cast<KvGroup>(g);
    PageList& list = lists_[g];
    if (group == KvGroup::kWindow) list.start_at(first_window_page);
    list.reserve_capacity(end);
    while (list.end_page() < end) list.append(pool_->allocate(group, PageHolder::kSession));
  }
  length_ = length;
}

}  // namespace gptoss
