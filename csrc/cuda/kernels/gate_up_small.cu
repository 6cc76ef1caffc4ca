// gate_up_small: h [rows * experts_per_token][intermediate] bf16 = swiglu(xs W_e^T / rms + bias_e)
// of few rows and their experts, MXFP4 weights. Streams the experts that are chosen once (8.8 MB
// each for gpt-oss); every block finds the routing itself. The rows g and g + 8 of a tile are an
// output's gate and up (RowOrder::kSwiglu).
#include "cuda/device/expert_stream.h"
#include "cuda/device/swiglu.h"
#include "cuda/kernels/expert_row.h"
#include "cuda/kernels/small_launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kOutputs = kTileRows / 2;  // of a tile

// A unit's biases of the output that the lane finishes.
struct OutputBias {
  float gate;
  float up;
};

__device__ __forceinline__ OutputBias bias_of(const GateUpSmallArgs& args, int expert, int tile) {
  const __nv_bfloat16* bias =
      args.bias + (expert * args.weight.row_tiles() + tile) * kTileRows + threadIdx.x % kOutputs;
  return {to_float(bias[0]), to_float(bias[kOutputs])};
}

// h of a unit's outputs, by one warp.
template <class Sums>
__device__ __forceinline__ void finish_unit(const GateUpSmallArgs& args, const Routing& routing,
                                            const OutputBias& bias, const ExpertRows& item,
                                            int tile, const Sums& sums) {
  const int h_columns =
      (static_cast<int>(args.weight.row_tiles()) * kOutputs + kMxChunk - 1) / kMxChunk * kMxChunk;
  const int output = static_cast<int>(threadIdx.x % kOutputs);
  const int count = item.count();
  for (int token = static_cast<int>(threadIdx.x % kWarp) / kOutputs; token < count;
       token += kWarp / kOutputs) {
    const int row = item.row_of(token);
    const float factor = routing.factor[row];
    const float gate = sums(token, output);
    const float up = sums(token, output + kOutputs);
    const int slot = row * args.routing.experts_per_token + routing.choice_of(row, item.expert);
    const __nv_bfloat16 h = __float2bfloat16(
        swiglu(gate * factor + bias.gate, up * factor + bias.up, args.limit, args.alpha));
    args.buffers
        .h[static_cast<std::int64_t>(slot) * h_columns + fragment_index(tile * kOutputs + output)] =
        __float2bfloat16(to_float(h) * kMxActivationFactor);
  }
}

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kExpertThreads, 1)
    gate_up_small_kernel(const __grid_constant__ GateUpSmallArgs args) {
  extern __shared__ __align__(128) std::uint8_t smem[];
  __shared__ Routing routing;
  clear_routing(args.routing, routing);
  ExpertStream<kTokens, kCopy> stream(args.weight, routing, smem);
  __syncthreads();  // barriers and routing, before they are used
  ptx::launch_dependents();
  ptx::wait_for_dependencies();
  route(args.routing, routing);
  stream.deal();
  if (threadIdx.x < kMxWarps * kWarp) {
    stream.multiply(args.buffers.expert_xs,
                    [](const ExpertRows& item, int token) { return item.row_of(token); });
  } else if (threadIdx.x / kWarp == kExpertFillWarp) {
    stream.fill();
  } else {
    if (blockIdx.x == 0) {
      put_routing(args.buffers.routing, routing, static_cast<int>(threadIdx.x) - kMxWarps * kWarp,
                  kFinishWarps * kWarp);
    }
    stream.finish(
        [&](const ExpertRows& item, int tile) { return bias_of(args, item.expert, tile); },
        [&](const OutputBias& bias, const ExpertRows& item, int tile, const auto& sums) {
          finish_unit(args, routing, bias, item, tile, sums);
        });
  }
}

}  // namespace

void gate_up_small(const GateUpSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                   cudaStream_t stream) {
  if (args.alone) return gate_up_row(args, device, dependence, stream);
  const std::int64_t most_experts = std::min<std::int64_t>(
      args.weight.num_experts, args.routing.num_rows * args.routing.experts_per_token);
  launch_small(device, dependence, args.routing.num_rows, args, "gate_up_small", stream,
               SmallVariants<GateUpSmallArgs> GPTOSS_SMALL_KERNELS(gate_up_small_kernel),
               SmallShape{.threads = kExpertThreads,
                          .units = most_experts * args.weight.row_tiles(),
                          .smem = expert_smem_bytes(args.routing.num_rows, args.weight.cols)});
}

}  // namespace gptoss::cuda
