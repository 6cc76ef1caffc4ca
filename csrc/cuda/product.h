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
struct alignas(16) TokenTile {
  std::int32_t expert;
  std::int32_t begin;
  std::int32_t count;
  std::int32_t work_before;  // tile_work of the tiles before it; behind the last one, of all
};

// What the rows of a tile cost, relative to others', where tokens are few: a part for reading and
// decoding weights and one for every 16 tokens, which do not overlap (16, 32, 48 and 64 tokens for
// each of 32 experts, gate_up of the 20b: 91, 112, 127 and 146 us on an H200, 10 of them to begin).
__host__ __device__ constexpr std::int32_t tile_work(std::int32_t num_tokens) {
  return 7 + 2 * ((num_tokens + 15) / 16);
}

}  // namespace gptoss::cuda
