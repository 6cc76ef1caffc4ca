#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace gptoss::cuda {

// Pieces of a packed step, each 4-byte words.
struct SpreadStepArgs {
  static constexpr int kMaxPieces = 8;
  struct Piece {
    std::uint32_t begin = 0;  // words into the block
    std::uint32_t size = 0;   // words
    std::uint32_t* out = nullptr;
  };
  Piece pieces[kMaxPieces];
  int num_pieces = 0;
  // Words of the first piece are tokens; batch.h says which stand for draws.
  const std::int32_t* drawn = nullptr;
};
// Blocks of at most this many bytes may lie anywhere and are free on return; larger ones are pinned
// and stay until the stream has passed.
constexpr std::size_t kLargestSpreadArgument = 16 << 10;
void spread_step(const SpreadStepArgs& args, std::span<const std::byte> block, cudaStream_t stream);

}  // namespace gptoss::cuda
