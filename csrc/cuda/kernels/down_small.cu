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

// The order in which weights are asked for: batch by batch, tile by tile, expert by expert.
class Cursor {
 public:
  __device__ Cursor(const DownSmallArgs& args, const Routing& routing, int num_my_tiles)
      : args_(args), routing_(routing), num_my_tiles_(num_my_tiles) {
    batch_ = Batch::after(routing, 0);
    active_ = batch_.first;
  }
  __device__ const std::uint8_t* operator()(int) {
    const std::int64_t tile = blockIdx.x + static_cast<std::int64_t>(tile_) * gridDim.x;
    const std::uint8_t* at = args_.weight.data +
                             routing_.active[active_] * args_.weight.expert_bytes() +
                             tile * args_.weight.k_chunks() * kMxRecordBytes;
    if (++active_ == batch_.end) {
      active_ = batch_.first;
      if (++tile_ == num_my_tiles_) {
        tile_ = 0;
        batch_ = Batch::after(routing_, batch_.end);
        active_ = batch_.first;
      }
    }
    return at;
  }

 private:
  const DownSmallArgs& args_;
  const Routing& routing_;
  int num_my_tiles_;
  Batch batch_;
  int active_ = 0;
  int tile_ = 0;
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

template <int kTokens, class Stream, class Locate>
__device__ __forceinline__ void multiply_expert(Stream& stream, const SmallSmem<Stream>& smem,
                                                std::uint32_t row_bytes, int first_column,
                                                int count, Locate& locate) {
  constexpr int kTokenTiles = kTokenTilesOf<kTokens>;
  const uint4* x[kTokenTiles];
  float acc[kTokenTiles][4];
  point_at_rows<kTokenTiles>(x, smem.activations, row_bytes, count,
                             [&](int token) { return first_column + token; });
  stream.template multiply<kTokens>(acc, x, locate);
  store_shares<Stream::kWarps, kTokenTiles>(smem.shares, first_column, count, acc);
}

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kMxWarps* kWarp, kTokens <= 8 ? 2 : 1)
    down_small_kernel(const __grid_constant__ DownSmallArgs args) {
  using Stream = MxStream<kCopy>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ Routing routing;
  __shared__ Column column_of[kShareColumns];
  const SmallSmem<Stream> smem(smem_base);
  const int intermediate = static_cast<int>(args.weight.cols);
  const int hidden = static_cast<int>(args.weight.rows);
  const int num_pairs = 2 * static_cast<int>(args.weight.k_chunks());
  const std::uint32_t row_bytes = activation_row_bytes(num_pairs);
  const int k = args.routing.experts_per_token;
  const int num_my_tiles = units_of_block(static_cast<int>(args.weight.row_tiles()));
  // Sums over experts: [my tiles][rows of the group][16].
  auto* totals = reinterpret_cast<float*>(smem.activations +
                                          min(args.routing.num_rows * k, kGroupRows) * row_bytes);
  Stream stream(smem.barriers, smem.ring, intermediate);
  ptx::launch_dependents();

  for (int first_row = 0; first_row < args.routing.num_rows; first_row += kGroupRows) {
    const int num_rows = min(kGroupRows, args.routing.num_rows - first_row);
    // The kernel that added up the router's sums had ended when gate_up let this one begin.
    route(args.routing, first_row, num_rows, routing);
    Cursor locate(args, routing, num_my_tiles);
    stream.start(routing.num_active * num_my_tiles, locate);
    for (int i = static_cast<int>(threadIdx.x); i < num_my_tiles * num_rows * kTileRows;
         i += static_cast<int>(blockDim.x)) {
      totals[i] = 0.0f;
    }
    if (first_row == 0) ptx::wait_for_dependencies();

    for (Batch batch = Batch::after(routing, 0); batch.first < routing.num_active;
         batch = Batch::after(routing, batch.end)) {
      list_columns(routing, batch, column_of);
      __syncthreads();  // the list, before it is read
      stage_rows<kMxActivationExponent>(
          smem.activations, args.buffers.h, intermediate, num_pairs, batch.num_rows,
          [&](int slot) { return (first_row + column_of[slot].row) * k + column_of[slot].choice; });
      __syncthreads();  // activations, before they are read
      for (int tile = 0; tile < num_my_tiles; ++tile) {
        int column = 0;
        for (int active = batch.first; active < batch.end; ++active) {
          const int count = routing.num_rows(active);
          if (kTokens == 1 || count == 1) {
            multiply_expert<1>(stream, smem, row_bytes, column, count, locate);
          } else if (kTokens <= 8 || count <= 8) {
            multiply_expert<8>(stream, smem, row_bytes, column, count, locate);
          } else {
            multiply_expert<kTokens>(stream, smem, row_bytes, column, count, locate);
          }
          column += count;
        }
        __syncthreads();  // the shares, before they are summed
        const int channel =
            (static_cast<int>(blockIdx.x) + tile * static_cast<int>(gridDim.x)) * kTileRows;
        for (int i = static_cast<int>(threadIdx.x); i < num_rows * kTileRows;
             i += static_cast<int>(blockDim.x)) {
          const int row = i / kTileRows;
          float total = totals[tile * num_rows * kTileRows + i];
          for (int c = 0; c < batch.num_rows; ++c) {
            if (column_of[c].row != row) continue;
            const float bias =
                to_float(args.bias[static_cast<std::int64_t>(column_of[c].expert) * hidden +
                                   channel + i % kTileRows]);
            const float value = sum_shares<Stream::kWarps>(smem.shares, c, i % kTileRows) + bias;
            total += routing.weight[row][column_of[c].choice] * value;
          }
          totals[tile * num_rows * kTileRows + i] = total;
        }
        __syncthreads();  // the sums, before the shares are written again
      }
    }
    for_channels(num_my_tiles * num_rows, [&](int column, int channel_in_tile, bool there) {
      const int tile =
          static_cast<int>(blockIdx.x) + column / num_rows * static_cast<int>(gridDim.x);
      const float sum = there ? totals[column * kTileRows + channel_in_tile] : 0.0f;
      add_to_residual(args.buffers, args.buffers.attn_squares, args.next_norm, hidden,
                      first_row + column % num_rows, tile * kTileRows + channel_in_tile, sum,
                      there);
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
  launch_small(device, dependence, args.routing.num_rows, args, "down_small", stream,
               SmallVariants<DownSmallArgs> GPTOSS_SMALL_KERNELS(down_small_kernel),
               SmallShape{.threads = kMxWarps * kWarp,
                          .units = tiles,
                          .smem = mx_smem_bytes(staged, args.weight.cols) +
                                  static_cast<std::size_t>(my_tiles * num_rows) * kTileRows * 4});
}

}  // namespace gptoss::cuda
