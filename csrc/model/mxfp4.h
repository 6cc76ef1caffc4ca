// MXFP4 as stored in a checkpoint (OCP microscaling 1.0): 32 values along the input dimension share
// one e8m0 scale byte; 16 bytes hold the e2m1 codes, element 2j in the low nibble of byte j.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace gptoss {

constexpr std::int64_t kMxBlock = 32;                 // values a block
constexpr std::int64_t kMxBlockBytes = kMxBlock / 2;  // code bytes a block

// Twice the value of an e2m1 code; exact in int8.
constexpr std::int8_t kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct MxMatrix {
  const std::uint8_t* blocks = nullptr;  // [rows][cols / 32][16]
  const std::uint8_t* scales = nullptr;  // [rows][cols / 32]
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  [[gnu::always_inline]] std::int64_t blocks_per_row() const { return cols / kMxBlock; }
};

// One matrix an expert, stored one after another.
struct MxExperts {
  const std::uint8_t* blocks = nullptr;  // [num_experts][rows][cols / 32][16]
  const std::uint8_t* scales = nullptr;  // [num_experts][rows][cols / 32]
  const bf16* bias = nullptr;            // [num_experts][rows]
  std::int64_t num_experts = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  [[gnu::always_inline]] MxMatrix expert(std::int64_t index) const {
    const std::int64_t num_blocks = rows * (cols / kMxBlock);
    return {blocks + index * num_blocks * kMxBlockBytes, scales + index * num_blocks, rows, cols};
  }
  [[gnu::always_inline]] const bf16* expert_bias(std::int64_t index) const {
    return bias + index * rows;
  }
};

}  // namespace gptoss
