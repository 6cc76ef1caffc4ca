// spread_step: a step's arrays from one packed block to their places.
// Bytes: 28 a row and 8 a page. A small block is the kernel's argument: it costs no more than the
// launch. A large one is read from pinned host memory over the link, whose latency (1 us) a copy
// engine would exceed; and a copy could not put in tokens that only the device knows.
#include <algorithm>
#include <cstring>

#include "backend/batch.h"
#include "cuda/device.h"
#include "cuda/kernels/spread_step.h"

namespace gptoss::cuda {
namespace {

constexpr int kThreads = 256;
// As batch.h has it, for the device.
constexpr std::int32_t kFirstDraw = -2;
static_assert(draw_of(kFirstDraw) == 0 && draw_of(kFirstDraw - 1) == 1 && is_draw(kFirstDraw));

__device__ void spread(const SpreadStepArgs& args, const std::uint32_t* block) {
  std::uint32_t total = 0;
  for (int i = 0; i < args.num_pieces; ++i) total += args.pieces[i].size;
  const std::uint32_t stride = gridDim.x * kThreads;
  for (std::uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += stride) {
    std::uint32_t at = i;
    int piece = 0;
    while (at >= args.pieces[piece].size) at -= args.pieces[piece++].size;
    std::uint32_t word = block[args.pieces[piece].begin + at];
    if (piece == 0) {
      const auto token = static_cast<std::int32_t>(word);
      if (token <= kFirstDraw) word = static_cast<std::uint32_t>(args.drawn[kFirstDraw - token]);
    }
    args.pieces[piece].out[at] = word;
  }
}

__global__ void spread_pinned_kernel(SpreadStepArgs args, const std::uint32_t* block) {
  spread(args, block);
}

template <int kBytes>
struct Argument {
  SpreadStepArgs args;
  std::uint32_t words[kBytes / 4];
};
template <int kBytes>
__global__ void spread_argument_kernel(const __grid_constant__ Argument<kBytes> argument) {
  spread(argument.args, argument.words);
}

unsigned blocks_for(std::size_t num_bytes) {
  constexpr std::size_t kMaxBlocks = 64;
  return static_cast<unsigned>(std::clamp<std::size_t>(num_bytes / (4 * kThreads), 1, kMaxBlocks));
}

template <int kBytes>
void spread_argument(const SpreadStepArgs& args, std::span<const std::byte> block,
                     cudaStream_t stream) {
  Argument<kBytes> argument;
  argument.args = args;
  std::memcpy(argument.words, block.data(), block.size());
  spread_argument_kernel<kBytes><<<blocks_for(block.size()), kThreads, 0, stream>>>(argument);
}

}  // namespace

void spread_step(const SpreadStepArgs& args, std::span<const std::byte> block,
                 cudaStream_t stream) {
  if (block.size() <= 1 << 10) {
    spread_argument<1 << 10>(args, block, stream);
  } else if (block.size() <= 4 << 10) {
    spread_argument<4 << 10>(args, block, stream);
  } else if (block.size() <= kLargestSpreadArgument) {
    spread_argument<kLargestSpreadArgument>(args, block, stream);
  } else {
    spread_pinned_kernel<<<blocks_for(block.size()), kThreads, 0, stream>>>(
        args, reinterpret_cast<const std::uint32_t*>(block.data()));
  }
  check_launch("spread_step");
}

}  // namespace gptoss::cuda
