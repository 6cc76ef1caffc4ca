// The first look at a row's logits: the largest, and what is no number.
#pragma once

#include <cstdint>

#include "cuda/device/draw_row.h"

namespace gptoss::cuda {

// What a thread has seen of a row.
struct Found {
  std::uint64_t best;  // as in DrawState
  std::uint32_t flags;
};

// The key of the largest of a lane's part of a chunk, all of it allowed; 0 where one is not finite,
// of which nothing is noted.
__device__ __forceinline__ std::uint32_t scan_finite(const ChunkPart& values, Found& mine) {
  float largest = values.logits[0];
  float zero = 0;  // NaN once one is not finite
#pragma unroll
  for (int i = 0; i < ChunkPart::kEach; ++i) {
    largest = fmaxf(largest, values.logits[i]);
    zero = fmaf(values.logits[i], 0.0f, zero);
  }
  if (!(zero == 0)) return 0;
  mine.flags |= kFoundFinite;
  const std::uint32_t key = logit_key(largest);
  if (key > static_cast<std::uint32_t>(mine.best >> 32)) {  // chunks ascend: ties stay behind
    std::int64_t token = values.token(ChunkPart::kEach - 1);
#pragma unroll
    for (int i = ChunkPart::kEach - 2; i >= 0; --i) {
      if (values.logits[i] == largest) token = values.token(i);
    }
    mine.best = std::uint64_t{key} << 32 | static_cast<std::uint32_t>(~token);
  }
  return key;
}

// The same of any part; of what is not allowed only errors are noted.
__device__ __forceinline__ std::uint32_t scan_any(const DrawRow& row, const ChunkPart& values,
                                                  std::int64_t vocab, Found& mine) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < ChunkPart::kEach; ++i) {
    const std::int64_t token = values.token(i);
    const float logit = values.logits[i];
    if (token >= vocab) break;
    mine.flags |= isnan(logit)   ? kFoundNan
                  : isinf(logit) ? (logit > 0 ? kFoundPlusInf : 0)
                                 : kFoundFinite;
    if (!is_allowed(row, token)) continue;
    const std::uint32_t key = logit_key(logit);
    largest = max(largest, key);
    mine.best = max(mine.best, std::uint64_t{key} << 32 | static_cast<std::uint32_t>(~token));
  }
  return largest;
}

}  // namespace gptoss::cuda
