// Words that the tensor-core products and their callers share.
#pragma once

#include <cstdint>

namespace gptoss::cuda {

enum class TileOutput {
  kStore,   // float32 out[token][row] = product + bias
  kAdd,     // float32 out[token][row] += product + bias
  kSwiglu,  // bf16 out[token][row / 2] = swiglu(product + bias), rows in RowOrder::kSwiglu
};

// Tokens [begin, begin + count) of the list sorted by expert meet one expert's matrix together.
struct TokenTile {
  std::int32_t expert;
  std::int32_t begin;
  std::int32_t count;
};

}  // namespace gptoss::cuda
