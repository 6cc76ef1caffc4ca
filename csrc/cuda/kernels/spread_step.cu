// spread_step: a step's arrays from one block of pinned host memory to their places.
// Bytes: 28 a row and 8 a page over the host's link, whose latency (about 1 us) is the cost. A copy
// engine would take longer to start, and could not put in tokens that only the device knows.
#include <algorithm>

#include "backend/batch.h"
#include "cuda/device.h"
#include "cuda/kernels/spread_step.h"

namespace gptoss::cuda {
namespace {

constexpr int kThreads = 256;
// As batch.h has it, for the device.
constexpr std::int32_t kFirstDraw = -2;
static_assert(draw_of(kFirstDraw) == 0 && draw_of(kFirstDraw - 1) == 1 && is_draw(kFirstDraw));

__global__ void spread_step_kernel(SpreadStepArgs args, std::uint32_t total) {
  const std::uint32_t stride = gridDim.x * kThreads;
  for (std::uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += stride) {
    std::uint32_t at = i;
    int piece = 0;
    while (at >= args.pieces[piece].size) at -= args.pieces[piece++].size;
    std::uint32_t word = args.source[args.pieces[piece].begin + at];
    if (piece == 0) {
      const auto token = static_cast<std::int32_t>(word);
      if (token <= kFirstDraw) word = static_cast<std::uint32_t>(args.draws[kFirstDraw - token]);
    }
    args.pieces[piece].out[at] = word;
  }
}

}  // namespace

void spread_step(const SpreadStepArgs& args, cudaStream_t stream) {
  std::uint32_t total = 0;
  for (int i = 0; i < args.num_pieces; ++i) total += args.pieces[i].size;
  constexpr std::uint32_t kMaxBlocks = 64;
  const std::uint32_t blocks = std::min((total + kThreads - 1) / kThreads, kMaxBlocks);
  spread_step_kernel<<<blocks, kThreads, 0, stream>>>(args, total);
  check_launch("spread_step");
}

}  // namespace gptoss::cuda
