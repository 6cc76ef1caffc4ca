// gate_up_small: h [rows * experts_per_token][intermediate] bf16 = swiglu(xs W_e^T / rms + bias_e)
// of few rows and their experts, MXFP4 weights. Streams the experts that are chosen once (8.8 MB
// each for gpt-oss); every block finds the routing itself. The rows g and g + 8 of a tile are an
// output's gate and up (RowOrder::kSwiglu). A unit is a tile of an expert.
#include "cuda/device/routing.h"
#include "cuda/kernels/small_launch.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kOutputs = kTileRows / 2;  // of a tile

__device__ __forceinline__ float swiglu(float gate, float up, float limit, float alpha) {
  gate = gate > limit ? limit : gate;  // NaN stays NaN
  up = up > limit ? limit : up < -limit ? -limit : up;
  return gate / (1.0f + expf(-alpha * gate)) * (up + 1.0f);
}

// What a column of the shares is.
struct Column {
  std::int16_t expert;
  std::int16_t row;  // of the group
  std::int32_t tile;
};

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kMxWarps* kWarp, kTokens <= 8 ? 2 : 1)
    gate_up_small_kernel(const __grid_constant__ GateUpSmallArgs args) {
  using Stream = MxStream<kCopy>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ Routing routing;
  __shared__ Column column_of[kShareColumns];
  const SmallSmem<Stream> smem(smem_base);
  const int hidden = static_cast<int>(args.weight.cols);
  const int num_pairs = 2 * static_cast<int>(args.weight.k_chunks());
  const int num_tiles = static_cast<int>(args.weight.row_tiles());
  const std::int64_t tile_bytes = args.weight.k_chunks() * kMxRecordBytes;
  const int intermediate = num_tiles * kOutputs;
  const int k = args.routing.experts_per_token;
  Stream stream(smem.barriers, smem.ring, hidden);
  ptx::wait_for_dependencies();
  ptx::launch_dependents();  // after the wait: down reads the router's sums before its own

  for (int first_row = 0; first_row < args.routing.num_rows; first_row += kGroupRows) {
    const int num_rows = min(kGroupRows, args.routing.num_rows - first_row);
    route(args.routing, first_row, num_rows, routing);
    const int num_units = units_of_block(routing.num_active * num_tiles);
    const auto unit_of = [&](int unit) {
      return static_cast<int>(blockIdx.x) + unit * static_cast<int>(gridDim.x);
    };
    const auto locate = [&](int unit) {
      const int expert = routing.active[unit_of(unit) / num_tiles];
      return args.weight.data +
             (static_cast<std::int64_t>(expert) * num_tiles + unit_of(unit) % num_tiles) *
                 tile_bytes;
    };
    stream.start(num_units, locate);
    stage_rows<kMxActivationExponent>(smem.activations, args.buffers.xs, hidden, num_pairs,
                                      num_rows, [&](int row) { return first_row + row; });
    __syncthreads();  // activations, before they are read

    for (int unit = 0; unit < num_units;) {
      int num_columns = 0;
      for (; unit < num_units; ++unit) {
        const int expert = routing.active[unit_of(unit) / num_tiles];
        const int count = __popc(routing.rows[expert]);
        if (num_columns + count > kShareColumns) break;
        const auto row_of = [&](int token) { return routing.row_of(expert, token); };
        if (threadIdx.x < count) {
          column_of[num_columns + threadIdx.x] = {static_cast<std::int16_t>(expert),
                                                  static_cast<std::int16_t>(row_of(threadIdx.x)),
                                                  unit_of(unit) % num_tiles};
        }
        const auto multiply = [&]<int kCount>() {
          const uint4* x[kTokenTilesOf<kCount>];
          float acc[kTokenTilesOf<kCount>][4];
          point_at_rows<kTokenTilesOf<kCount>>(x, smem.activations, activation_row_bytes(num_pairs),
                                               count, row_of);
          stream.template multiply<kCount>(acc, x, locate);
          store_shares<Stream::kWarps, kTokenTilesOf<kCount>>(smem.shares, num_columns, count, acc);
        };
        if (kTokens == 1 || count == 1) {
          multiply.template operator()<1>();
        } else if (kTokens <= 8 || count <= 8) {
          multiply.template operator()<8>();
        } else {
          multiply.template operator()<kTokens>();
        }
        num_columns += count;
      }
      __syncthreads();  // the shares, before they are summed
      for (int i = static_cast<int>(threadIdx.x); i < num_columns * kOutputs;
           i += static_cast<int>(blockDim.x)) {
        const Column column = column_of[i / kOutputs];
        const int output = i % kOutputs;
        const float factor = routing.factor[column.row];
        const __nv_bfloat16* bias =
            args.bias +
            (static_cast<std::int64_t>(column.expert) * num_tiles + column.tile) * kTileRows;
        const float gate = sum_shares<Stream::kWarps>(smem.shares, i / kOutputs, output);
        const float up = sum_shares<Stream::kWarps>(smem.shares, i / kOutputs, output + kOutputs);
        const int slot =
            (first_row + column.row) * k + routing.choice_of(column.row, column.expert);
        args.buffers
            .h[static_cast<std::int64_t>(slot) * intermediate + column.tile * kOutputs + output] =
            __float2bfloat16(swiglu(gate * factor + to_float(bias[output]),
                                    up * factor + to_float(bias[output + kOutputs]), args.limit,
                                    args.alpha));
      }
      __syncthreads();  // the sums, before the shares are written again
    }
  }
}

}  // namespace

void gate_up_small(const GateUpSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                   cudaStream_t stream) {
  const std::int64_t most_experts =
      std::min<std::int64_t>(args.weight.num_experts, std::min(args.routing.num_rows, kGroupRows) *
                                                          args.routing.experts_per_token);
  launch_small(device, dependence, args.routing.num_rows, args, "gate_up_small", stream,
               SmallVariants<GateUpSmallArgs> GPTOSS_SMALL_KERNELS(gate_up_small_kernel),
               SmallShape{.threads = kMxWarps * kWarp,
                          .units = most_experts * args.weight.row_tiles(),
                          .smem = mx_smem_bytes(args.routing.num_rows, args.weight.cols)});
}

}  // namespace gptoss::cuda
