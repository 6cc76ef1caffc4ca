#include "cuda/draws.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "cuda/op_arrays.h"

namespace gptoss::cuda {
namespace {

constexpr double kLargestWeight = 17592186044416.0;  // 2^44, as in engine/logits.h
constexpr std::size_t kMasksKept = 4;

constexpr std::uint32_t tag_of(DrawId draw) {
  return static_cast<std::uint32_t>(draw + 1);
}

[[noreturn]] void fail(DrawError error) {
  switch (error) {
    case DrawError::kNan:
      throw Error("[sample] logits hold NaN, expected finite values; is the checkpoint damaged?");
    case DrawError::kPlusInf:
      throw Error("[sample] logits hold +inf, expected finite values; is the checkpoint damaged?");
    case DrawError::kNothingFinite:
      throw Error(
          "[sample] logits hold -inf only, expected finite values; is the checkpoint damaged?");
    case DrawError::kNothingAllowed:
      break;
  }
  throw InvalidArgument(
      "[sample] expected at least one allowed token, the banned ids leave none; allow more");
}

}  // namespace

Draws::Draws(std::int64_t vocab)
    : vocab_(vocab),
      tokens_(kDrawsKept * sizeof(std::int32_t), "draws"),
      results_(kDrawsKept * sizeof(std::uint64_t), "draws"),
      workspace_(draw_tokens_workspace_bytes(vocab, kMaxRows), "draws") {
  check(cudaMemset(tokens_.as<std::byte>(), 0, tokens_.num_bytes()), "draws");
  check(cudaMemset(workspace_.as<std::byte>(), 0, workspace_.num_bytes()), "draws");
  std::memset(results_.as<std::byte>(), 0, results_.num_bytes());
}

std::size_t Draws::planned_bytes(std::int64_t vocab) {
  return kDrawsKept * sizeof(std::int32_t) + draw_tokens_workspace_bytes(vocab, kMaxRows);
}

std::size_t Draws::num_bytes() const {
  std::size_t total = tokens_.num_bytes() + workspace_.num_bytes();
  for (const Mask& mask : masks_) total += mask.bits.num_bytes();
  return total;
}

const std::uint32_t* Draws::allowed(const Banned& banned, cudaStream_t stream) {
  if (banned == nullptr || banned->empty()) return nullptr;
  for (const Mask& mask : masks_) {
    if (mask.banned == banned) return mask.bits.as<const std::uint32_t>();
  }
  std::vector<std::uint32_t> bits(static_cast<std::size_t>((vocab_ + 31) / 32), ~0u);
  for (const std::int32_t token : *banned) {
    bits[static_cast<std::size_t>(token / 32)] &= ~(1u << (token % 32));
  }
  DeviceBuffer buffer(bits.size() * sizeof(std::uint32_t), "banned tokens");
  check(cudaMemcpyAsync(buffer.as<std::byte>(), bits.data(), buffer.num_bytes(),
                        cudaMemcpyHostToDevice, stream),
        "banned tokens");
  check(cudaStreamSynchronize(stream), "banned tokens");
  masks_.push_back({banned, std::move(buffer)});
  return masks_.back().bits.as<const std::uint32_t>();
}

std::span<const DrawRow> Draws::prepare(const Batch& batch, cudaStream_t stream) {
  rows_.clear();
  kinds_ = {};
  // Not while rows of this batch name them; freeing waits for the steps that were queued before.
  while (masks_.size() > kMasksKept) masks_.erase(masks_.begin());
  std::int32_t logit_row = 0;
  for (const Segment& segment : batch.segments) {
    const auto scored = static_cast<std::int32_t>(segment.num_scored_rows());
    if (segment.logits == LogitsWanted::kDraw) {
      const DrawOptions& options = *segment.draw;
      DrawRow row;
      row.allowed = allowed(options.banned, stream);
      row.logit_row = logit_row;
      row.slot = static_cast<std::int32_t>(next_ % kDrawsKept);
      row.tag = tag_of(next_);
      if (options.temperature > 0) {
        row.random = options.random;
        row.inverse_temperature = std::min(1.0 / options.temperature, 1e30);
        row.top_p = options.top_p;
        row.min_weight = std::max(1.0, std::ceil(options.min_p * kLargestWeight));
        row.top_k = options.top_k < vocab_ ? static_cast<std::int32_t>(options.top_k) : 0;
      }
      kinds_ |= draw_kinds(row, vocab_);
      batch.draws[rows_.size()] = next_++;
      rows_.push_back(row);
    }
    logit_row += scored;
  }
  return rows_;
}

void Draws::launch(const float* logits, const DrawRow* rows, cudaStream_t stream) const {
  const auto count = static_cast<std::int32_t>(rows_.size());
  for (std::int32_t begin = 0; begin < count; begin += kMaxRows) {
    DrawTokensArgs args;
    args.logits = logits;
    args.vocab = vocab_;
    args.rows = rows + begin;
    args.num_rows = std::min(count - begin, kMaxRows);
    args.max_rows = kMaxRows;
    args.kinds = kinds_;
    args.tokens = tokens_.as<std::int32_t>();
    args.results = results_.as<std::uint64_t>();
    args.workspace = workspace_.as<std::uint8_t>();
    draw_tokens(args, stream);
  }
}

void Draws::queue(const float* logits, const DrawRow* rows, cudaStream_t stream) {
  if (!rows_.empty()) {
    graphs_.run({logits, rows, static_cast<std::int32_t>(rows_.size()), kinds_}, stream, "draws",
                [&] { launch(logits, rows, stream); });
  }
  check(cudaEventRecord(done_.get(), stream), "draws");
}

bool Draws::idle() const noexcept {
  return cudaEventQuery(done_.get()) != cudaErrorNotReady;
}

std::int32_t Draws::wait(DrawId draw) const {
  std::atomic_ref<std::uint64_t> result(results_.as<std::uint64_t>()[draw % kDrawsKept]);
  constexpr int kLooksBetweenQuestions = 1024;
  for (bool is_done = false;;) {
    for (int look = 0; look < kLooksBetweenQuestions; ++look) {
      const std::uint64_t seen = result.load(std::memory_order_acquire);
      if (seen >> 32 == tag_of(draw)) {
        const auto token = static_cast<std::int32_t>(static_cast<std::uint32_t>(seen));
        if (token < 0) fail(static_cast<DrawError>(token));
        return token;
      }
      std::this_thread::yield();
    }
    // A device that failed writes nothing any more.
    GPTOSS_REQUIRE(DeviceError, !is_done, "[sample] expected the result of draw ", draw,
                   ", it was not kept; read it before ", kDrawsKept, " more");
    is_done = idle();
    if (is_done) check(cudaEventQuery(done_.get()), "forward");
  }
}

void draw_rows(const DrawTokensOpArgs& args, cudaStream_t stream) {
  Draws draws(args.logits.cols);
  const OpMatrix<const float> logits(args.logits);
  std::vector<Segment> segments(args.options.size());
  std::vector<DrawId> ids(args.options.size());
  for (std::size_t row = 0; row < segments.size(); ++row) {
    segments[row].logits = LogitsWanted::kDraw;
    segments[row].draw = &args.options[row];
  }
  const std::span<const DrawRow> rows =
      draws.prepare({.segments = segments, .draws = ids.data()}, stream);
  const auto on_device = op_vector(rows.data(), std::ssize(rows));
  draws.queue(logits.data(), on_device.data(), stream);
  check(cudaStreamSynchronize(stream), "draw_tokens");
  std::vector<std::int32_t> tokens;
  for (const DrawId id : ids) tokens.push_back(draws.wait(id));
  check(cudaMemcpy(args.tokens, tokens.data(), tokens.size() * sizeof(std::int32_t),
                   cudaMemcpyDefault),
        "draw_tokens");
}

}  // namespace gptoss::cuda
