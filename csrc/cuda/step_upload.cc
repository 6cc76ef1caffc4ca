#include "cuda/step_upload.h"

#include <algorithm>
#include <cstring>

namespace gptoss::cuda {
namespace {

// 32 sessions of 131,072 tokens.
constexpr std::size_t kInitialPages = std::size_t{1} << 16;
constexpr std::size_t kAlignment = 16;  // of packed arrays

std::size_t total_pages(const Batch& batch) {
  std::size_t total = 0;
  for (const Segment& segment : batch.segments) {
    for (const auto& pages : segment.pages) total += pages.size();
  }
  return total;
}

template <typename T>
T* at(std::byte* block, std::size_t begin) {
  return reinterpret_cast<T*>(block + begin);
}

}  // namespace

StepUpload::Sizes StepUpload::initial_sizes(std::int64_t max_rows) {
  const auto rows = static_cast<std::size_t>(std::max<std::int64_t>(max_rows, kSmallRows));
  Sizes sizes{};
  for (const Array array : {kTokens, kPositions, kSegmentOf, kLogitRows}) {
    sizes[array] = rows * sizeof(std::int32_t);
  }
  sizes[kSegments] = rows * sizeof(SegmentInfo);
  sizes[kPages] = kInitialPages * sizeof(__nv_bfloat16*);
  sizes[kDraws] = kSmallRows * sizeof(DrawRow);
  return sizes;
}

std::size_t StepUpload::planned_bytes(std::int64_t max_rows) {
  std::size_t total = 0;
  for (const std::size_t size : initial_sizes(max_rows)) total += size;
  return total;
}

StepUpload::StepUpload(std::int64_t max_rows, std::int64_t num_layers,
                       std::int64_t experts_per_token)
    : num_layers_(num_layers),
      experts_per_token_(experts_per_token),
      small_(kLargestSpreadArgument) {
  const Sizes sizes = initial_sizes(max_rows);
  for (int array = 0; array < kArrays; ++array) ensure(static_cast<Array>(array), sizes[array]);
}

std::size_t StepUpload::num_bytes() const {
  std::size_t total = 0;
  for (const DeviceBuffer& array : arrays_) total += array.num_bytes();
  return total;
}

void StepUpload::ensure(Array array, std::size_t num_bytes) {
  DeviceBuffer& buffer = arrays_[array];
  if (num_bytes <= buffer.num_bytes()) return;
  // Freeing waits for the steps that read it.
  buffer = DeviceBuffer();
  buffer = DeviceBuffer(num_bytes, "arrays of a step");
}

std::byte* StepUpload::staging(std::size_t num_bytes) {
  slot_ = (slot_ + 1) % kSlots;
  Slot& slot = slots_[slot_];
  check(cudaEventSynchronize(slot.read.get()), "step_upload");
  if (slot.memory.num_bytes() < num_bytes) {
    slot.memory = PinnedBuffer();
    slot.memory = PinnedBuffer(std::max<std::size_t>(2 * num_bytes, 64 << 10), "arrays of a step");
  }
  return slot.memory.as<std::byte>();
}

StepUpload::Packed StepUpload::pack_sizes(const Batch& batch, std::size_t num_draws) const {
  const auto num_rows = static_cast<std::size_t>(batch.num_tokens());
  const std::size_t padded = std::max<std::size_t>(num_rows, kSmallRows);
  Packed packed;
  packed.size[kTokens] = packed.size[kPositions] = packed.size[kSegmentOf] =
      padded * sizeof(std::int32_t);
  packed.size[kLogitRows] =
      static_cast<std::size_t>(batch.num_scored_rows()) * sizeof(std::int32_t);
  packed.size[kSegments] = batch.segments.size() * sizeof(SegmentInfo);
  packed.size[kPages] = total_pages(batch) * sizeof(__nv_bfloat16*);
  packed.size[kForced] = batch.forced_experts == nullptr
                             ? 0
                             : static_cast<std::size_t>(num_layers_ * experts_per_token_) *
                                   num_rows * sizeof(std::int32_t);
  packed.size[kDraws] = num_draws * sizeof(DrawRow);
  for (int array = 0; array < kArrays; ++array) {
    packed.begin[array] = packed.total;
    packed.total += (packed.size[array] + kAlignment - 1) / kAlignment * kAlignment;
  }
  return packed;
}

void StepUpload::fill(const Batch& batch, const Context& context, const Packed& packed,
                      std::byte* block) {
  auto* tokens = at<std::int32_t>(block, packed.begin[kTokens]);
  auto* positions = at<std::int32_t>(block, packed.begin[kPositions]);
  auto* segment_of = at<std::int32_t>(block, packed.begin[kSegmentOf]);
  auto* logit_rows = at<std::int32_t>(block, packed.begin[kLogitRows]);
  auto* segments = at<SegmentInfo>(block, packed.begin[kSegments]);
  auto* pages = at<__nv_bfloat16*>(block, packed.begin[kPages]);
  std::int32_t row = 0;
  std::int32_t page = 0;
  for (std::int32_t index = 0; index < std::ssize(batch.segments); ++index) {
    const Segment& segment = batch.segments[static_cast<std::size_t>(index)];
    const auto count = static_cast<std::int32_t>(segment.num_tokens());
    const auto position = static_cast<std::int32_t>(segment.position);
    SegmentInfo& info = segments[index];
    info.first_row = row;
    info.num_rows = count;
    info.position = position;
    for (int g = 0; g < kNumKvGroups; ++g) {
      info.page_begin[g] = page;
      info.first_page[g] = static_cast<std::int32_t>(segment.first_page[g]);
      for (const PageId id : segment.pages[g]) {
        pages[page++] = context.storage.page(static_cast<KvGroup>(g), id);
      }
    }
    const auto first_logit = count - static_cast<std::int32_t>(segment.num_scored_rows());
    for (std::int32_t i = 0; i < count; ++i, ++row) {
      tokens[row] = segment.tokens[static_cast<std::size_t>(i)];
      positions[row] = position + i;
      segment_of[row] = index;
      if (i >= first_logit) *logit_rows++ = row;
    }
  }
  for (; row < kSmallRows; ++row) {
    tokens[row] = -1;
    positions[row] = -1;
    segment_of[row] = 0;
  }
  if (packed.size[kForced] > 0) {
    std::memcpy(block + packed.begin[kForced], batch.forced_experts, packed.size[kForced]);
  }
  std::ranges::copy(context.draws, at<DrawRow>(block, packed.begin[kDraws]));
}

void StepUpload::spread(const Packed& packed, const std::byte* block, const std::int32_t* drawn,
                        cudaStream_t stream) {
  SpreadStepArgs args;
  args.drawn = drawn;
  for (int array = 0; array < kArrays; ++array) {
    if (packed.size[array] == 0) continue;
    ensure(static_cast<Array>(array), packed.size[array]);
    args.pieces[args.num_pieces++] = {static_cast<std::uint32_t>(packed.begin[array] / 4),
                                      static_cast<std::uint32_t>(packed.size[array] / 4),
                                      arrays_[array].as<std::uint32_t>()};
  }
  spread_step(args, {block, packed.total}, stream);
}

StepView StepUpload::upload(const Batch& batch, const Context& context, cudaStream_t stream) {
  const Packed packed = pack_sizes(batch, context.draws.size());
  if (packed.total <= kLargestSpreadArgument) {
    fill(batch, context, packed, small_.data());
    spread(packed, small_.data(), context.drawn, stream);
  } else {
    std::byte* const block = staging(packed.total);
    fill(batch, context, packed, block);
    spread(packed, block, context.drawn, stream);
    check(cudaEventRecord(slots_[slot_].read.get(), stream), "step_upload");
  }
  StepView view{};
  view.tokens = arrays_[kTokens].as<const std::int32_t>();
  view.positions = arrays_[kPositions].as<const std::int32_t>();
  view.segment_of = arrays_[kSegmentOf].as<const std::int32_t>();
  view.segments = arrays_[kSegments].as<const SegmentInfo>();
  view.pages = arrays_[kPages].as<__nv_bfloat16* const>();
  view.logit_rows = arrays_[kLogitRows].as<const std::int32_t>();
  view.forced_experts =
      packed.size[kForced] == 0 ? nullptr : arrays_[kForced].as<const std::int32_t>();
  view.num_rows = static_cast<std::int32_t>(batch.num_tokens());
  view.num_segments = static_cast<std::int32_t>(batch.segments.size());
  view.num_logit_rows = static_cast<std::int32_t>(batch.num_scored_rows());
  for (const Segment& segment : batch.segments) {
    view.max_position = std::max(
        view.max_position, static_cast<std::int32_t>(segment.position + segment.num_tokens() - 1));
  }
  return view;
}

}  // namespace gptoss::cuda
