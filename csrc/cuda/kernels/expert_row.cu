// gate_up_row, down_row: the experts' products of one row, MXFP4 weights: 4 experts of 8.8 and 4.4
// MB for gpt-oss. The same sums as gate_up_small's and down_small's, in the same order, for devices
// of 9.0 and later (bulk copies).
#include <algorithm>

#include "cuda/device/expert_row.h"
#include "cuda/device/swiglu.h"
#include "cuda/kernels/expert_row.h"
#include "cuda/launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kOutputs = kTileRows / 2;  // of a tile of gates and ups

__device__ __forceinline__ bool multiplies() {
  return threadIdx.x < kMxWarps * kWarp;
}

// h = swiglu(xs W_e^T / rms + bias_e). No weight can be asked for before the routing is known.
template <int kPerLane>
__global__ void __launch_bounds__(kExpertRowThreads, 2)
    gate_up_row_kernel([[maybe_unused]] const __grid_constant__ GateUpSmallArgs args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::uint8_t smem[];
  const int k = args.routing.experts_per_token;
  const bool there = args.routing.positions[0] >= 0;
  const ExpertRow row(args.weight, there ? k : 0, smem);
  float router_bias[kPerLane];
  load_router_bias(router_bias, args.routing);
  __syncthreads();  // barriers, before they are used
  if (multiplies()) {
    ptx::wait_for_dependencies();
    const int num_chunks = static_cast<int>(args.weight.k_chunks());
    row.multiply([&](int) { return piece_of_row(args.buffers.expert_xs, num_chunks); });
    return;
  }
  // Once before the sums are there: the second time neither instructions nor addresses are new.
  RowChoice choice;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1) ptx::wait_for_dependencies();
    choice = choose_for_row(args.routing, 0, router_bias);
  }
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int num_tiles = static_cast<int>(args.weight.row_tiles());
  const int h_columns = (num_tiles * kOutputs + kMxChunk - 1) / kMxChunk * kMxChunk;
  if (blockIdx.x == 0) {
    put_row_choice(args.buffers.routing, choice, k, there);
  }
  row.finish(
      [&](int place) { return expert_at(choice, k, place); },
      [&](int expert, int tile) {
        return to_float(args.bias[(expert * num_tiles + tile) * kTileRows + lane % kTileRows]);
      },
      [&](float bias, int place, int tile, float sum) {
        const float gate = sum * choice.factor + bias;
        const float up = __shfl_down_sync(kAllLanes, gate, kOutputs);
        if (lane >= kOutputs) return;
        const __nv_bfloat16 h = __float2bfloat16(swiglu(gate, up, args.limit, args.alpha));
        args.buffers.h[static_cast<std::int64_t>(place) * h_columns +
                       fragment_index(tile * kOutputs + lane)] =
            __float2bfloat16(to_float(h) * kMxActivationFactor);
      });
#endif
}

// h W_e^T + bias_e of each expert. May start when gate_up has left the routing: the first weights
// are asked for while gate_up finishes.
__global__ void __launch_bounds__(kExpertRowThreads, 2)
    down_row_kernel([[maybe_unused]] const __grid_constant__ DownSmallArgs args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::uint8_t smem[];
  const int k = args.routing.experts_per_token;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const auto* routing = static_cast<const Routing*>(args.buffers.routing);
  const int listed = lane < k ? __ldcg(&routing->expert[0][lane]) : 0;
  const bool there = __all_sync(kAllLanes, listed >= 0);
  const ExpertRow row(args.weight, there ? k : 0, smem);
  __syncthreads();  // barriers, before they are used
  if (multiplies()) {
    ptx::wait_for_dependencies();
    const int num_chunks = static_cast<int>(args.weight.k_chunks());
    row.multiply([&](int choice) {
      return piece_of_row(
          args.buffers.h + static_cast<std::int64_t>(choice) * num_chunks * kMxChunk, num_chunks);
    });
    return;
  }
  const std::int64_t hidden = args.weight.rows;
  row.finish([&](int place) { return __shfl_sync(kAllLanes, listed, place); },
             [&](int expert, int tile) {
               return to_float(args.bias[expert * hidden + tile * kTileRows + lane % kTileRows]);
             },
             [&](float bias, int place, int tile, float sum) {
               if (lane < kTileRows) {
                 args.buffers.expert_sums[place * hidden + tile * kTileRows + lane] = sum + bias;
               }
             });
#endif
}

template <class Args>
void launch_row(void (*kernel)(Args), const Args& args, std::size_t least_smem, const char* op,
                const DeviceInfo& device, Dependence dependence, cudaStream_t stream) {
  const std::int64_t units = args.routing.experts_per_token * args.weight.row_tiles();
  launch(kernel,
         {.blocks = static_cast<int>(std::min<std::int64_t>(device.num_sms, units)),
          .threads = kExpertRowThreads,
          .smem = std::max(ExpertRow::bytes(args.weight), least_smem),
          .dependence = dependence},
         args, op, stream);
}

}  // namespace

bool expert_row_fits(const ModelConfig& c, const DeviceInfo& device) {
  const std::int64_t columns = std::max(c.hidden_size, c.intermediate_size);
  return device.compute_capability >= 90 && columns <= kExpertRowColumns &&
         c.num_experts <= kExpertRowExperts &&
         ExpertRow::bytes(MxTiles{.cols = columns}) <= device.smem_per_block / 2;
}

void gate_up_row(const GateUpSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                 cudaStream_t stream) {
  // More than half of an SM: its blocks take one each, and leave the rest to down's.
  launch_row(args.routing.num_experts <= kWarp ? gate_up_row_kernel<1>
                                               : gate_up_row_kernel<kExpertRowPerLane>,
             args, device.smem_per_block / 2, "gate_up_small", device, dependence, stream);
}

void down_row(const DownSmallArgs& args, const DeviceInfo& device, Dependence dependence,
              cudaStream_t stream) {
  launch_row(down_row_kernel, args, 0, "down_small", device, dependence, stream);
}

}  // namespace gptoss::cuda
