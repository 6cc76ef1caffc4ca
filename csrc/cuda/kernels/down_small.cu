// down_small: residual [rows][hidden] float32 += sum over each row's experts, ascending, of
// weight * (h W_e^T + bias_e) for few rows, MXFP4 weights; then xs and sums of squares of the new
// residual. Streams the experts that are chosen once (4.4 MB each for gpt-oss). A block has whole
// tiles of channels and all experts of each, so that it adds in order without asking another.
#include "cuda/device/routing.h"
#include "cuda/device/small_residual.h"
#include "cuda/kernels/small_launch.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

// Experts whose rows of h are in shared memory together: [first, end) of the active ones, at most
// kGroupRows rows.
struct Batch {
  int first = 0;
  int end = 0;
  int num_rows = 0;

  __device__ static Batch after(const Routing& routing, int first) {
    Batch batch{first, first, 0};
    while (batch.end < routing.num_active) {
      const int count = routing.num_rows(batch.end);
      if (batch.num_rows + count > kGroupRows) break;
      batch.num_rows += count;
      ++batch.end;
    }
    return batch;
  }
};

// How many of the block's tiles are multiplied between two barriers: all, if their columns fit.
__device__ __forceinline__ int tiles_at_once(int num_rows, int num_my_tiles, int share_columns) {
  return num_rows * num_my_tiles <= share_columns ? num_my_tiles : 1;
}

// The order in which weights are asked for: batch by batch, so many tiles at once, expert by
// expert, tile by tile.
template <int kShareColumns>
class Cursor {
 public:
  __device__ Cursor(const DownSmallArgs& args, const Routing& routing, int num_my_tiles)
      : args_(args),
        routing_(routing),
        tile_bytes_(args.weight.k_chunks() * kMxRecordBytes),
        num_my_tiles_(num_my_tiles) {
    enter(Batch::after(routing, 0));
  }
  __device__ __forceinline__ const std::uint8_t* operator()() {
    const std::int64_t tile = blockIdx.x + static_cast<std::int64_t>(tile_) * gridDim.x;
    const std::uint8_t* at = args_.weight.data +
                             routing_.active[active_] * args_.weight.expert_bytes() +
                             tile * tile_bytes_;
    if (++tile_ == first_tile_ + at_once_) {
      tile_ = first_tile_;
      if (++active_ == batch_.end) {
        active_ = batch_.first;
        first_tile_ += at_once_;
        tile_ = first_tile_;
        if (first_tile_ == num_my_tiles_) enter(Batch::after(routing_, batch_.end));
      }
    }
    return at;
  }

 private:
  __device__ void enter(const Batch& batch) {
    batch_ = batch;
    active_ = batch.first;
    first_tile_ = 0;
    tile_ = 0;
    at_once_ = tiles_at_once(batch.num_rows, num_my_tiles_, kShareColumns);
  }

  const DownSmallArgs& args_;
  const Routing& routing_;
  std::int64_t tile_bytes_;
  int num_my_tiles_;
  Batch batch_;
  int active_ = 0;
  int first_tile_ = 0;
  int tile_ = 0;
  int at_once_ = 1;
};

struct Column {
  std::int16_t expert;
  std::int16_t row;     // of the group
  std::int16_t slot;    // staged row of h
  std::int16_t choice;  // which of the row's experts
};

// The columns of a batch, in the order of its experts.
__device__ __forceinline__ void list_columns(const Routing& routing, const Batch& batch,
                                             Column* columns) {
  if (threadIdx.x != 0) return;
  int at = 0;
  for (int active = batch.first; active < batch.end; ++active) {
    const int expert = routing.active[active];
    for (int token = 0; token < routing.num_rows(active); ++token, ++at) {
      const int row = routing.row_of(expert, token);
      columns[at] = {static_cast<std::int16_t>(expert), static_cast<std::int16_t>(row),
                     static_cast<std::int16_t>(at),
                     static_cast<std::int16_t>(routing.choice_of(row, expert))};
    }
  }
}

// Adds a batch's columns of some tiles to the totals, [my tiles][rows of the group][16].
template <int kWarps>
__device__ __forceinline__ void add_columns(const DownSmallArgs& args, const Routing& routing,
                                            const Column* columns, const Batch& batch,
                                            const float* shares, int num_rows, int first_tile,
                                            int num_tiles, float* totals) {
  for (int i = static_cast<int>(threadIdx.x); i < num_tiles * num_rows * kTileRows;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / kTileRows % num_rows;
    const int tile = i / kTileRows / num_rows;
    const int channel = StagedVector::channel(first_tile + tile, i % kTileRows);
    float total = totals[first_tile * num_rows * kTileRows + i];
    for (int c = 0; c < batch.num_rows; ++c) {
      if (columns[c].row != row) continue;
      const float bias = to_float(args.bias[columns[c].expert * args.weight.rows + channel]);
      const float value =
          sum_shares<kWarps>(shares, tile * batch.num_rows + c, i % kTileRows) + bias;
      total += routing.weight[row][columns[c].choice] * value;
    }
    totals[first_tile * num_rows * kTileRows + i] = total;
  }
}

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kMxWarps* kWarp, kTokens == 1 ? 2 : 1)
    down_small_kernel(const __grid_constant__ DownSmallArgs args) {
  using Stream = MxStream<kCopy>;
  constexpr int kShareColumns = kMxShareColumns<kTokens>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ Routing routing;
  __shared__ Column column_of[kGroupRows];
  __shared__ StagedVector scale;
  const SmallSmem<Stream, kShareColumns> smem(smem_base);
  const int intermediate = static_cast<int>(args.weight.cols);
  const int hidden = static_cast<int>(args.weight.rows);
  const int num_pairs = 2 * static_cast<int>(args.weight.k_chunks());
  const std::uint32_t row_bytes = activation_row_bytes(num_pairs);
  const int k = args.routing.experts_per_token;
  const int num_my_tiles = units_of_block(static_cast<int>(args.weight.row_tiles()));
  auto* totals = reinterpret_cast<float*>(smem.activations +
                                          min(args.routing.num_rows * k, kGroupRows) * row_bytes);
  Stream stream(smem.barriers, smem.ring, intermediate);
  typename Stream::template Product<1> one;
  ptx::launch_dependents();
  scale.load(args.next_norm, num_my_tiles);
  prepare_routing(args.routing, routing);

  for (int first_row = 0; first_row < args.routing.num_rows; first_row += kGroupRows) {
    const int num_rows = min(kGroupRows, args.routing.num_rows - first_row);
    // The kernel that added up the router's sums had ended when gate_up let this one begin.
    route(args.routing, first_row, num_rows, routing);
    Cursor<kShareColumns> locate(args, routing, num_my_tiles);
    stream.start(routing.num_active * num_my_tiles, locate);
    for (int i = static_cast<int>(threadIdx.x); i < num_my_tiles * routing.num_active;
         i += static_cast<int>(blockDim.x)) {
      ptx::prefetch_l2(args.bias +
                       routing.active[i / num_my_tiles] * static_cast<std::int64_t>(hidden) +
                       StagedVector::channel(i % num_my_tiles, 0));
    }
    for (int i = static_cast<int>(threadIdx.x); i < num_my_tiles * num_rows * kTileRows;
         i += static_cast<int>(blockDim.x)) {
      totals[i] = 0.0f;
    }

    for (Batch batch = Batch::after(routing, 0); batch.first < routing.num_active;
         batch = Batch::after(routing, batch.end)) {
      list_columns(routing, batch, column_of);
      __syncthreads();  // the list, before it is read
      if (first_row == 0 && batch.first == 0) ptx::wait_for_dependencies();
      copy_fragments(smem.activations, args.buffers.h, num_pairs, batch.num_rows, [&](int slot) {
        return (first_row + column_of[slot].row) * k + column_of[slot].choice;
      });
      copies_landed();
      __syncthreads();  // activations, before they are read
      one.forget();
      const int at_once = tiles_at_once(batch.num_rows, num_my_tiles, kShareColumns);
      for (int first_tile = 0; first_tile < num_my_tiles; first_tile += at_once) {
        int column = 0;
#pragma unroll 1
        for (int active = batch.first; active < batch.end; ++active) {
          const int count = kTokens == 1 ? 1 : routing.num_rows(active);
          const auto multiply = [&]<int kCount>(auto& product, int tile) {
            constexpr int kTiles = kTokenTilesOf<kCount>;
            const uint4* x[kTiles];
            float acc[kTiles][4];
            point_at_rows<kTiles>(x, smem.activations, row_bytes, count,
                                  [&](int token) { return column + token; });
            stream.template multiply<kCount>(product, acc, x, locate);
            store_shares<Stream::kWarps, kTiles>(smem.shares, tile * batch.num_rows + column, count,
                                                 acc);
          };
#pragma unroll 1
          for (int tile = 0; tile < at_once; ++tile) {
            if (kTokens == 1 || count == 1) {
              multiply.template operator()<1>(one, tile);
            } else if (kTokens <= 8 || count <= 8) {
              typename Stream::template Product<8> product;
              multiply.template operator()<8>(product, tile);
            } else {
              typename Stream::template Product<kTokens> product;
              multiply.template operator()<kTokens>(product, tile);
            }
          }
          column += count;
        }
        __syncthreads();  // the shares, before they are summed
        add_columns<Stream::kWarps>(args, routing, column_of, batch, smem.shares, num_rows,
                                    first_tile, at_once, totals);
        __syncthreads();  // the sums, before the shares are written again
      }
    }
    if (first_row == 0 && routing.num_active == 0) ptx::wait_for_dependencies();
    for_channels(num_my_tiles * num_rows, [&](int column, int channel_in_tile, bool there) {
      const int unit = column / num_rows;
      const int row = first_row + column % num_rows;
      const int channel = StagedVector::channel(unit, channel_in_tile);
      const std::int64_t at = static_cast<std::int64_t>(row) * hidden + channel;
      float value = 0.0f;
      if (there) {
        value = __ldcg(args.buffers.residual + at) + totals[column * kTileRows + channel_in_tile];
      }
      const float x = put_residual(
          args.buffers.residual, args.buffers.attn_squares, hidden, row, channel, value,
          there ? scale.of(args.next_norm, unit, channel_in_tile) : 0.0f, there);
      if (there) args.buffers.xs[at] = __float2bfloat16(x);
    });
    __syncthreads();  // the totals, before they are cleared for the next rows
  }
}

}  // namespace

void down_small(const DownSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                cudaStream_t stream) {
  const int num_rows = std::min(args.routing.num_rows, kGroupRows);
  const std::int64_t tiles = args.weight.row_tiles();
  const std::int64_t my_tiles = tiles_along(tiles, std::min<std::int64_t>(tiles, device.num_sms));
  const int staged = std::min(args.routing.num_rows * args.routing.experts_per_token, kGroupRows);
  launch_small(
      device, dependence, args.routing.num_rows, args, "down_small", stream,
      SmallVariants<DownSmallArgs> GPTOSS_SMALL_KERNELS(down_small_kernel),
      SmallShape{.threads = kMxWarps * kWarp,
                 .units = tiles,
                 .smem = mx_smem_bytes(args.routing.num_rows == 1, staged, args.weight.cols) +
                         static_cast<std::size_t>(my_tiles * num_rows) * kTileRows * 4});
}

}  // namespace gptoss::cuda
