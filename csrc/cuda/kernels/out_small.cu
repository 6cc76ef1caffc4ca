// out_small: residual [rows][hidden] float32 += attention [rows][heads * 64] bf16 W^T + bias for
// few rows, then what the experts need of the new residual: xs = bf16(residual * norm scale), the
// sum of squares of every 16 channels, and their products with the router's matrix, added over
// blocks in fixed point. Streams the weight once (23.6 MB for gpt-oss-20b).
#include "cuda/device/routing.h"
#include "cuda/device/small_residual.h"
#include "cuda/kernels/small_launch.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

// The router's weights of one expert and one tile of channels.
struct RouterWeights {
  uint4 packed[2];

  __device__ void load(const OutSmallArgs& args, int unit, int expert) {
    const auto* from = reinterpret_cast<const uint4*>(
        args.router_by_channel +
        (static_cast<std::int64_t>(StagedVector::tile(unit)) * args.num_experts + expert) *
            kTileRows);
    packed[0] = __ldg(from);
    packed[1] = __ldg(from + 1);
  }
  __device__ float times(const float* x) const {
    const auto* words = reinterpret_cast<const std::uint32_t*>(packed);
    float sum = 0.0f;
#pragma unroll
    for (int pair = 0; pair < kTileRows / 2; ++pair) {
      sum = fmaf(__uint_as_float(words[pair] << 16), x[2 * pair], sum);
      sum = fmaf(__uint_as_float(words[pair] & 0xffff0000u), x[2 * pair + 1], sum);
    }
    return sum;
  }
};

// Adds the products of some tiles of xs with the router's columns; `tiles` [columns][16] float32. A
// thread has an expert and a tile, `held` its weights if the tile is one of the first.
__device__ __forceinline__ void add_router(const OutSmallArgs& args, const RouterWeights& held,
                                           const float* tiles, int first_unit, int count,
                                           int first_row, int num_rows) {
  const int num_items = count * args.num_experts;
  const int row_step = max(1, static_cast<int>(blockDim.x) / num_items);
  for (int i = static_cast<int>(threadIdx.x); i < num_items * row_step;
       i += static_cast<int>(blockDim.x)) {
    const int item = i % num_items;
    const int unit = item / args.num_experts;
    const int expert = item % args.num_experts;
    RouterWeights weights = held;
    if (first_unit != 0 || i != static_cast<int>(threadIdx.x)) {
      weights.load(args, first_unit + unit, expert);
    }
    for (int row = i / num_items; row < num_rows; row += row_step) {
      const float sum = weights.times(tiles + (unit * num_rows + row) * kTileRows);
      if (fabsf(sum) < kRouterLimit) {
        atomicAdd(args.buffers.router.sums +
                      static_cast<std::int64_t>(first_row + row) * args.num_experts + expert,
                  static_cast<unsigned long long>(__float2ll_rn(sum * kRouterUnits)));
      } else {  // too large, infinite or NaN
        atomicOr(args.buffers.router.not_finite + first_row + row, 1u);
      }
    }
  }
}

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kDenseWarps* kWarp, kTokens == 1 ? 2 : 1)
    out_small_kernel(const __grid_constant__ OutSmallArgs args) {
  using Stream = DenseStream<kTokens, kCopy>;
  constexpr int kShareColumns = kDenseShareColumns<kTokens>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ float tiles[kShareColumns * kTileRows];      // of xs
  __shared__ float residuals[kShareColumns * kTileRows];  // of the first columns
  __shared__ StagedVector bias;
  __shared__ StagedVector scale;
  const SmallSmem<Stream, kShareColumns> smem(smem_base);
  const int first_row = static_cast<int>(blockIdx.y) * kGroupRows;
  const int num_rows = min(kGroupRows, args.num_rows - first_row);
  const int columns = static_cast<int>(args.weight.cols);
  const int hidden = static_cast<int>(args.weight.rows);
  const int expert_columns = (hidden + kMxChunk - 1) / kMxChunk * kMxChunk;
  const std::uint32_t row_bytes = dense_row_bytes(columns);
  const int num_units = units_of_block(static_cast<int>(args.weight.row_tiles()));
  const std::int64_t tile_bytes = args.weight.k_tiles() * kDenseTileBytes;
  TileLocator locate(args.weight.data, tile_bytes);
  Stream stream(smem.barriers, smem.ring, columns);
  stream.start(num_units, locate);
  ptx::launch_dependents();
  bias.load(args.bias, num_units);
  scale.load(args.next_norm, num_units);
  // Of the units that finish together first, as add_router deals them out.
  RouterWeights router;
  const int first_items = min(num_units, max(1, kShareColumns / num_rows)) * args.num_experts;
  const int item = static_cast<int>(threadIdx.x) % max(1, first_items);
  if (first_items > 0) router.load(args, item / args.num_experts, item % args.num_experts);
  ptx::wait_for_dependencies();

  const auto residual_of = [&](int unit, int row, int channel) {
    return __ldcg(args.buffers.residual + static_cast<std::int64_t>(first_row + row) * hidden +
                  StagedVector::channel(unit, channel));
  };
  copy_rows(smem.activations, args.buffers.attention, columns, num_rows,
            [&](int row) { return first_row + row; });
  for (int i = static_cast<int>(threadIdx.x);
       i < min(num_units * num_rows, kShareColumns) * kTileRows;
       i += static_cast<int>(blockDim.x)) {
    const int column = i / kTileRows;
    residuals[i] = residual_of(column / num_rows, column % num_rows, i % kTileRows);
  }
  copies_landed();
  __syncthreads();  // activations, before they are read
  multiply_units<kTokens, kShareColumns>(
      stream, smem.shares, smem.activations, row_bytes, num_rows, num_units, locate, [] {},
      [&](int first_unit, int count) {
        for_channels(count * num_rows, [&](int column, int channel_in_tile, bool there) {
          const int unit = first_unit + column / num_rows;
          const int row = column % num_rows;
          const int channel = StagedVector::channel(unit, channel_in_tile);
          float value = 0.0f;
          if (there) {
            value = first_unit == 0 ? residuals[column * kTileRows + channel_in_tile]
                                    : residual_of(unit, row, channel_in_tile);
            value += sum_shares<Stream::kWarps>(smem.shares, column, channel_in_tile) +
                     bias.of(args.bias, unit, channel_in_tile);
          }
          const float x = put_residual(
              args.buffers.residual, args.buffers.mlp_squares, hidden, first_row + row, channel,
              value, there ? scale.of(args.next_norm, unit, channel_in_tile) : 0.0f, there);
          if (!there) return;
          tiles[column * kTileRows + channel_in_tile] = x;
          args.buffers.expert_xs[static_cast<std::int64_t>(first_row + row) * expert_columns +
                                 fragment_index(channel)] =
              __float2bfloat16(x * kMxActivationFactor);
        });
        __syncthreads();  // the block's channels of xs, before the router reads them
        add_router(args, router, tiles, first_unit, count, first_row, num_rows);
      });
}

}  // namespace

void out_small(const OutSmallArgs& args, const DeviceInfo& device, Dependence dependence,
               cudaStream_t stream) {
  launch_small(device, dependence, args.num_rows, args, "out_small", stream,
               SmallVariants<OutSmallArgs> GPTOSS_SMALL_KERNELS(out_small_kernel),
               SmallShape{.threads = kDenseWarps * kWarp,
                          .units = args.weight.row_tiles(),
                          .groups = row_groups(args.num_rows),
                          .smem = dense_smem_bytes(args.num_rows, args.weight.cols)});
}

}  // namespace gptoss::cuda
