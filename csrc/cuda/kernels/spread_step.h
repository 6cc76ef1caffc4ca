#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gptoss::cuda {

// Pieces of a packed step, each 4-byte words.
struct SpreadStepArgs {
  static constexpr int kMaxPieces = 7;
  const std::uint32_t* source = nullptr;  // pinned host memory
  struct Piece {
    std::uint32_t begin = 0;  // words into the source
    std::uint32_t size = 0;   // words
    std::uint32_t* out = nullptr;
  };
  Piece pieces[kMaxPieces];
  int num_pieces = 0;
  // Words of the first piece are tokens; batch.h says which stand for draws.
  const std::int32_t* draws = nullptr;
};
void spread_step(const SpreadStepArgs& args, cudaStream_t stream);

}  // namespace gptoss::cuda
