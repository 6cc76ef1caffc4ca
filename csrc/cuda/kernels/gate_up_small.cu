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

// The block's units one after another, without a division.
struct UnitCursor {
  const Routing& routing;
  int num_tiles;
  int active;
  int tile;

  __device__ UnitCursor(const Routing& routing, int num_tiles)
      : routing(routing),
        num_tiles(num_tiles),
        active(static_cast<int>(blockIdx.x) / num_tiles),
        tile(static_cast<int>(blockIdx.x) % num_tiles) {}
  __device__ __forceinline__ void advance() {
    tile += static_cast<int>(gridDim.x);
#pragma unroll 1
    while (tile >= num_tiles) {
      tile -= num_tiles;
      ++active;
    }
  }
  __device__ int expert() const { return routing.active[active]; }
};

struct TileOfExpert {
  UnitCursor cursor;
  const std::uint8_t* data;
  std::int64_t expert_bytes;
  std::int64_t tile_bytes;

  __device__ const std::uint8_t* operator()() {
    const std::uint8_t* at = data + cursor.expert() * expert_bytes + cursor.tile * tile_bytes;
    cursor.advance();
    return at;
  }
};

// Asks for the biases of the block's units.
__device__ __forceinline__ void prefetch_bias(const GateUpSmallArgs& args, const Routing& routing,
                                              int num_tiles, int num_units) {
  const int unit = static_cast<int>(threadIdx.x);
  if (unit >= num_units) return;
  const int at = static_cast<int>(blockIdx.x) + unit * static_cast<int>(gridDim.x);
  const int expert = routing.active[at / num_tiles];
  ptx::prefetch_l2(args.bias +
                   (static_cast<std::int64_t>(expert) * num_tiles + at % num_tiles) * kTileRows);
}

// h of a column's outputs from the sums of its shares.
template <int kWarps>
__device__ __forceinline__ void finish_columns(const GateUpSmallArgs& args, const Routing& routing,
                                               const Column* columns, int num_columns,
                                               const float* shares, int first_row) {
  const int num_tiles = static_cast<int>(args.weight.row_tiles());
  const int h_columns = (num_tiles * kOutputs + kMxChunk - 1) / kMxChunk * kMxChunk;
  for (int i = static_cast<int>(threadIdx.x); i < num_columns * kOutputs;
       i += static_cast<int>(blockDim.x)) {
    const Column column = columns[i / kOutputs];
    const int output = i % kOutputs;
    const float factor = routing.factor[column.row];
    const __nv_bfloat16* bias =
        args.bias +
        (static_cast<std::int64_t>(column.expert) * num_tiles + column.tile) * kTileRows;
    const float gate_bias = to_float(bias[output]);
    const float up_bias = to_float(bias[output + kOutputs]);
    const float gate = sum_shares<kWarps>(shares, i / kOutputs, output);
    const float up = sum_shares<kWarps>(shares, i / kOutputs, output + kOutputs);
    const int slot = (first_row + column.row) * args.routing.experts_per_token +
                     routing.choice_of(column.row, column.expert);
    const __nv_bfloat16 h = __float2bfloat16(
        swiglu(gate * factor + gate_bias, up * factor + up_bias, args.limit, args.alpha));
    args.buffers.h[static_cast<std::int64_t>(slot) * h_columns +
                   fragment_index(column.tile * kOutputs + output)] =
        __float2bfloat16(to_float(h) * kMxActivationFactor);
  }
}

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kMxWarps* kWarp, kTokens == 1 ? 2 : 1)
    gate_up_small_kernel(const __grid_constant__ GateUpSmallArgs args) {
  using Stream = MxStream<kCopy>;
  constexpr int kShareColumns = kMxShareColumns<kTokens>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ Routing routing;
  __shared__ Column column_of[kShareColumns];
  const SmallSmem<Stream, kShareColumns> smem(smem_base);
  const int hidden = static_cast<int>(args.weight.cols);
  const int num_pairs = 2 * static_cast<int>(args.weight.k_chunks());
  const std::uint32_t row_bytes = activation_row_bytes(num_pairs);
  const int num_tiles = static_cast<int>(args.weight.row_tiles());
  Stream stream(smem.barriers, smem.ring, hidden);
  typename Stream::template Product<1> one;
  prepare_routing(args.routing, routing);
  ptx::wait_for_dependencies();
  ptx::launch_dependents();  // after the wait: down reads the router's sums before its own

  for (int first_row = 0; first_row < args.routing.num_rows; first_row += kGroupRows) {
    const int num_rows = min(kGroupRows, args.routing.num_rows - first_row);
    copy_fragments(smem.activations, args.buffers.expert_xs, num_pairs, num_rows,
                   [&](int row) { return first_row + row; });
    route(args.routing, first_row, num_rows, routing);
    const int num_units = units_of_block(routing.num_active * num_tiles);
    UnitCursor cursor(routing, num_tiles);
    TileOfExpert locate{cursor, args.weight.data, args.weight.expert_bytes(),
                        args.weight.k_chunks() * kMxRecordBytes};
    stream.start(num_units, locate);
    prefetch_bias(args, routing, num_tiles, num_units);
    copies_landed();
    __syncthreads();  // activations, before they are read

    for (int unit = 0; unit < num_units;) {
      int num_columns = 0;
#pragma unroll 1
      for (; unit < num_units; ++unit) {
        const int expert = cursor.expert();
        const int count = kTokens == 1 ? 1 : __popc(routing.rows[expert]);
        if (num_columns + count > kShareColumns) break;
        const auto row_of = [&](int token) {
          return kTokens == 1 ? 0 : routing.row_of(expert, token);
        };
        if (static_cast<int>(threadIdx.x) < count) {
          const int row = row_of(static_cast<int>(threadIdx.x));
          column_of[num_columns + threadIdx.x] = {static_cast<std::int16_t>(expert),
                                                  static_cast<std::int16_t>(row), cursor.tile};
        }
        const auto multiply = [&]<int kCount>(auto& product) {
          constexpr int kTiles = kTokenTilesOf<kCount>;
          const uint4* x[kTiles];
          float acc[kTiles][4];
          point_at_rows<kTiles>(x, smem.activations, row_bytes, count, row_of);
          stream.template multiply<kCount>(product, acc, x, locate);
          store_shares<Stream::kWarps, kTiles>(smem.shares, num_columns, count, acc);
        };
        if (kTokens == 1 || count == 1) {
          multiply.template operator()<1>(one);
        } else if (kTokens <= 8 || count <= 8) {
          typename Stream::template Product<8> product;
          multiply.template operator()<8>(product);
        } else {
          typename Stream::template Product<kTokens> product;
          multiply.template operator()<kTokens>(product);
        }
        num_columns += count;
        cursor.advance();
      }
      __syncthreads();  // the shares, before they are summed
      finish_columns<Stream::kWarps>(args, routing, column_of, num_columns, smem.shares, first_row);
      __syncthreads();  // the sums, before the shares are written again
    }
    one.forget();
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
                          .smem = mx_smem_bytes(args.routing.num_rows == 1,
                                                std::min(args.routing.num_rows, kGroupRows),
                                                args.weight.cols)});
}

}  // namespace gptoss::cuda
