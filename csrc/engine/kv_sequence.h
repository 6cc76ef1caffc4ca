// One sequence's keys and values: which pages hold them, which may be written, and which states of
// the past can be had back.
//
// Threads: one at a time (the session's owner, or the leader of its step).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/batch.h"
#include "engine/page_pool.h"
#include "model/kv_plan.h"

namespace gptoss {

// A position to come back to. Pages of full-attention layers stay with the sequence as long as it
// is longer than the position; window pages are referred to here, since the sequence lets go of
// those out of sight.
struct KvSnapshot {
  std::int64_t position = 0;
  PageList window;
};

class KvSequence {
 public:
  static constexpr std::size_t kMaxMarks = 16;  // the oldest is dropped first

  KvSequence(PagePool& pool, const KvPlan& plan);
  // A copy shares every page and mark; whoever writes a shared page first copies it.
  KvSequence(const KvSequence&) = default;
  KvSequence& operator=(const KvSequence&) = default;
  KvSequence(KvSequence&&) = default;

  // Tokens with keys and values.
  std::int64_t length() const { return length_; }

  // Makes pages for the next tokens, none of them shared. Needs the backend lock. Throws
  // OutOfMemory; the sequence is as before then.
  void reserve(std::int64_t num_tokens);
  // Undoes reserve, before advance.
  void unreserve() noexcept;
  // The reserved tokens were forwarded: window pages out of sight are released.
  void advance(std::int64_t num_tokens) noexcept;
  // Position and pages of a step's segment; views stay valid until the sequence changes.
  void fill(Segment& segment) const;

  KvSnapshot snapshot(PageHolder holder) const;
  // `snapshot` was taken of this sequence for a session, and the sequence has only grown since.
  void restore(KvSnapshot snapshot) noexcept;

  // Marks the present length; returns it.
  std::int64_t mark();
  std::span<const KvSnapshot> marks() const { return marks_; }  // ascending positions
  // Goes back to the largest length <= position for which the window pages are still held (by the
  // sequence, by a mark, or 0) and drops the marks beyond it. Returns the new length: the tokens
  // from there to `position` must be forwarded again.
  std::int64_t rewind(std::int64_t position);

  const PageList& pages(KvGroup group) const { return lists_[static_cast<int>(group)]; }
  // Restoring a saved state: pages [first_page, pages for length) of each group, contents to be
  // written by the caller. The sequence must be empty. Needs the backend lock.
  void allocate_for_restore(std::int64_t length, std::int64_t first_window_page);

  // First window page that is kept at a length: one position more than the next query sees, so
  // that the last token can be forwarded again.
  static std::int64_t first_kept_page(const KvPlan& plan, std::int64_t length) {
    return plan.first_visible_page(KvGroup::kWindow, length > 0 ? length - 1 : 0);
  }
  static std::int64_t num_pages(std::int64_t length) {
    return (length + kPageTokens - 1) / kPageTokens;
  }

 private:
  bool has_layers(int group) const { return plan_->num_group_layers[group] > 0; }
  PageList& window() { return lists_[static_cast<int>(KvGroup::kWindow)]; }
  const PageList& window() const { return lists_[static_cast<int>(KvGroup::kWindow)]; }
  bool window_serves(const PageList& window, std::int64_t position) const;

  PagePool* pool_;
  const KvPlan* plan_;
  std::int64_t length_ = 0;
  PageList lists_[kNumKvGroups];
  std::vector<KvSnapshot> marks_;  // ascending positions, all <= length_
};

}  // namespace gptoss
