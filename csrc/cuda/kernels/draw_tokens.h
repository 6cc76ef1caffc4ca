#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <cstddef>
#include <cstdint>

namespace gptoss::cuda {

// One draw; the options are DrawOptions of backend/batch.h, prepared.
struct DrawRow {
  std::uint64_t random = 0;
  double inverse_temperature = 0;          // 0: the largest logit
  double top_p = 1;                        // 1: no limit
  double min_weight = 1;                   // of what may be drawn, 2^44 being the likeliest
  const std::uint32_t* allowed = nullptr;  // [vocab / 32, rounded up] bits; null: all
  std::int32_t top_k = 0;                  // 0: no limit
  std::int32_t logit_row = 0;
  std::int32_t slot = 0;  // of the tokens and results
  std::uint32_t tag = 0;  // high half of the result, by which the host knows it
};

// Low half of a result where there is no token.
enum class DrawError : std::int32_t {
  kNan = -1,
  kPlusInf = -2,
  kNothingFinite = -3,
  kNothingAllowed = -4,
};

// What rows need done besides finding the largest logit.
struct DrawKinds {
  bool random = false;  // a temperature
  bool whole = false;   // neither top-k nor top-p
  bool cut = false;     // one of them
  bool binned = false;  // a cut of which nothing is known at first

  auto operator<=>(const DrawKinds&) const = default;
  DrawKinds& operator|=(const DrawKinds& other) {
    random |= other.random;
    whole |= other.whole;
    cut |= other.cut;
    binned |= other.binned;
    return *this;
  }
};
DrawKinds draw_kinds(const DrawRow& row, std::int64_t vocab);

struct DrawTokensArgs {
  const float* logits = nullptr;  // [...][vocab]
  std::int64_t vocab = 0;
  const DrawRow* rows = nullptr;  // [num_rows], device memory
  std::int32_t num_rows = 0;
  std::int32_t max_rows = 0;          // what the workspace was made for
  DrawKinds kinds;                    // of all rows
  std::int32_t* tokens = nullptr;     // [slots], device memory; 0 where there is an error
  std::uint64_t* results = nullptr;   // [slots], mapped host memory
  std::uint8_t* workspace = nullptr;  // zeroed before the first use, kept ready by every call
};
std::size_t draw_tokens_workspace_bytes(std::int64_t vocab, std::int64_t max_rows);
void draw_tokens(const DrawTokensArgs& args, cudaStream_t stream);

}  // namespace gptoss::cuda
