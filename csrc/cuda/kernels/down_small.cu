// down_small: residual [rows][hidden] float32 += sum over each row's experts, ascending, of
// weight * (h W_e^T + bias_e) for few rows, MXFP4 weights; then xs and sums of squares of the new
// residual. Streams the experts that are chosen once (4.4 MB each for gpt-oss). The products of all
// experts go to memory, 46 KB a row, and a second kernel adds them: so every block has the same
// number of tiles, where 180 tiles of channels would leave 132 blocks a third idle.
#include "cuda/device/expert_stream.h"
#include "cuda/device/small_residual.h"
#include "cuda/kernels/expert_row.h"
#include "cuda/kernels/small_launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kExpertThreads, 1)
    down_small_kernel(const __grid_constant__ DownSmallArgs args) {
  extern __shared__ __align__(128) std::uint8_t smem[];
  __shared__ Routing routing;
  const int k = args.routing.experts_per_token;
  const auto slot_of = [&](const ExpertRows& item, int token) {
    const int row = item.row_of(token);
    return row * k + routing.choice_of(row, item.expert);
  };
  ExpertStream<kTokens, kCopy> stream(args.weight, routing, smem);
  ptx::launch_dependents();
  ptx::wait_for_dependencies();
  take_routing(routing, args.buffers.routing);
  __syncthreads();  // barriers and routing, before they are used
  stream.deal();
  if (threadIdx.x < kMxWarps * kWarp) {
    stream.multiply(args.buffers.h, slot_of);
  } else if (threadIdx.x / kWarp == kExpertFillWarp) {
    stream.fill();
  } else {
    const int channel = static_cast<int>(threadIdx.x % kTileRows);
    stream.finish(
        [&](const ExpertRows& item, int tile) {
          return to_float(args.bias[item.expert * args.weight.rows + tile * kTileRows + channel]);
        },
        [&](float bias, const ExpertRows& item, int tile, const auto& sums) {
          const int count = item.count();
          for (int token = static_cast<int>(threadIdx.x % kWarp) / kTileRows; token < count;
               token += kWarp / kTileRows) {
            args.buffers
                .expert_sums[slot_of(item, token) * args.weight.rows + tile * kTileRows + channel] =
                sums(token, channel) + bias;
          }
        });
  }
}

constexpr int kCombineThreads = 192;

// A channel a thread.
__global__ void __launch_bounds__(kCombineThreads)
    combine_small_kernel(const __grid_constant__ DownSmallArgs args) {
  const int k = args.routing.experts_per_token;
  const int hidden = static_cast<int>(args.weight.rows);
  const int blocks_per_row = (hidden + kCombineThreads - 1) / kCombineThreads;
  const int row = static_cast<int>(blockIdx.x) / blocks_per_row;
  const int channel = static_cast<int>(blockIdx.x) % blocks_per_row * kCombineThreads +
                      static_cast<int>(threadIdx.x);
  const bool there = channel < hidden;
  ptx::launch_dependents();
  const bool has_experts = args.routing.positions[row] >= 0;
  const float scale = there ? to_float(args.next_norm[channel]) : 0.0f;
  ptx::wait_for_dependencies();
  const std::int64_t at = static_cast<std::int64_t>(row) * hidden + channel;
  float value = 0.0f;
  if (there) {
    const float residual = __ldcg(args.buffers.residual + at);
    const Routing& routing = *static_cast<const Routing*>(args.buffers.routing);
    const float* sums = args.buffers.expert_sums + static_cast<std::int64_t>(row) * k * hidden;
    float total = 0.0f;
    if (has_experts) {
#pragma unroll 4
      for (int choice = 0; choice < k; ++choice) {
        total += __ldcg(&routing.weight[row][choice]) *
                 __ldcg(sums + static_cast<std::int64_t>(choice) * hidden + channel);
      }
    }
    value = residual + total;
  }
  const float x = put_residual(args.buffers.residual, args.buffers.attn_squares, hidden, row,
                               channel, value, scale, there);
  if (there) args.buffers.xs[at] = __float2bfloat16(x);
}

}  // namespace

void down_small(const DownSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                cudaStream_t stream) {
  if (args.alone) {
    down_row(args, device, dependence, stream);
  } else {
    const std::int64_t most_experts = std::min<std::int64_t>(
        args.weight.num_experts, args.routing.num_rows * args.routing.experts_per_token);
    launch_small(device, dependence, args.routing.num_rows, args, "down_small", stream,
                 SmallVariants<DownSmallArgs> GPTOSS_SMALL_KERNELS(down_small_kernel),
                 SmallShape{.threads = kExpertThreads,
                            .units = most_experts * args.weight.row_tiles(),
                            .smem = expert_smem_bytes(args.routing.num_rows, args.weight.cols)});
  }
  launch(combine_small_kernel,
         {.blocks = args.routing.num_rows *
                    static_cast<int>(tiles_along(args.weight.rows, kCombineThreads)),
          .threads = kCombineThreads,
          .smem = 0,
          .dependence = dependence},
         args, "down_small", stream);
}

}  // namespace gptoss::cuda
