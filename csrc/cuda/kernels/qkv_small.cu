// qkv_small: q, k, v [rows][(heads + 2 kv_heads) * 64] = xs [rows][hidden] W^T / rms + bias for few
// rows, q and k rotated, q bf16 to a buffer, k and v bf16 to the cache's pages. Streams the weight
// once (29.5 MB for gpt-oss-20b); the rows g and g + 8 of a tile are a rotary pair
// (RowOrder::kRope).
#include "cuda/kernels/small_launch.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kHalf = 32;  // kHeadDim / 2
constexpr int kTilesPerHead = 4;
// More than half of an SM, yet no more than down_row leaves: a row's first weights come while the
// experts before it end.
constexpr std::size_t kBesideDown = 113000;
static_assert(kHeadDim == 2 * kHalf && kHeadDim == kTilesPerHead * kTileRows);

// What a row's epilogue needs of the step, in shared memory before the product is there.
struct RowPlaces {
  int position[kGroupRows];
  __nv_bfloat16* keys[kGroupRows];  // of kv head 0, at the row's slot of its page
  float angles[kGroupRows][kHeadDim];

  __device__ void load(const QkvSmallArgs& args, int first_row, int num_rows) {
    for (int i = static_cast<int>(threadIdx.x); i < num_rows * kHeadDim;
         i += static_cast<int>(blockDim.x)) {
      const int row = i / kHeadDim;
      const int place = args.step.positions[first_row + row];
      if (place >= 0) {
        angles[row][i % kHeadDim] =
            args.rope_table[static_cast<std::int64_t>(place) * kHeadDim + i % kHeadDim];
      }
      if (i % kHeadDim != 0) continue;
      position[row] = place;
      if (place >= 0) keys[row] = slot_address(args, first_row + row, place);
    }
  }

  __device__ static __nv_bfloat16* slot_address(const QkvSmallArgs& args, int row, int position) {
    const SegmentInfo& segment = args.step.segments[args.step.segment_of[row]];
    const int group = static_cast<int>(args.group);
    const int page = position / static_cast<int>(kPageTokens) - segment.first_page[group];
    auto* base = reinterpret_cast<std::uint8_t*>(args.step.pages[segment.page_begin[group] + page]);
    return reinterpret_cast<__nv_bfloat16*>(base + args.layer_offset) +
           position % static_cast<int>(kPageTokens) * kHeadDim;
  }
};

// The pair of channels `dim` and `dim + 32` of a head of q, k or v.
__device__ __forceinline__ void finish_pair(const QkvSmallArgs& args, const RowPlaces& places,
                                            int group_row, int row, int head, int dim, float low,
                                            float high) {
  if (places.position[group_row] < 0) return;
  if (head < args.num_heads + args.num_kv_heads) {
    const float cosine = places.angles[group_row][dim];
    const float sine = places.angles[group_row][kHalf + dim];
    const float rotated = low * cosine - high * sine;
    high = high * cosine + low * sine;
    low = rotated;
  }
  // A page's heads: those of the keys, then those of the values.
  __nv_bfloat16* to =
      head < args.num_heads
          ? args.buffers.q + (static_cast<std::int64_t>(row) * args.num_heads + head) * kHeadDim
          : places.keys[group_row] +
                static_cast<std::int64_t>(head - args.num_heads) * kPageTokens * kHeadDim;
  to[dim] = __float2bfloat16(low);
  to[dim + kHalf] = __float2bfloat16(high);
}

__device__ __forceinline__ void clear_router(const QkvSmallArgs& args) {
  const RouterSums& router = args.buffers.router;
  const int count = args.step.num_rows * args.num_experts;
  const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  for (int i = at; i < count; i += static_cast<int>(gridDim.x * blockDim.x)) router.sums[i] = 0;
  if (at < args.step.num_rows) router.not_finite[at] = 0;
}

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kDenseWarps* kWarp, kTokens == 1 ? 2 : 1)
    qkv_small_kernel(const __grid_constant__ QkvSmallArgs args) {
  using Stream = DenseStream<kTokens, kCopy>;
  constexpr int kShareColumns = kDenseShareColumns<kTokens>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ float factors[kGroupRows];
  __shared__ RowPlaces places;
  __shared__ StagedVector bias;
  const SmallSmem<Stream, kShareColumns> smem(smem_base);
  const int first_row = static_cast<int>(blockIdx.y) * kGroupRows;
  const int num_rows = min(kGroupRows, args.step.num_rows - first_row);
  const int hidden = static_cast<int>(args.weight.cols);
  const std::uint32_t row_bytes = dense_row_bytes(hidden);
  const int num_units = units_of_block(static_cast<int>(args.weight.row_tiles()));
  const std::int64_t tile_bytes = args.weight.k_tiles() * kDenseTileBytes;
  TileLocator locate(args.weight.data, tile_bytes);
  Stream stream(smem.barriers, smem.ring, hidden);
  ptx::launch_dependents();
  bias.load(args.bias, num_units);
  places.load(args, first_row, num_rows);
  stream.start(num_units, locate);  // after the few numbers above, which would wait for it
  ptx::wait_for_dependencies();

  const auto row_of = [&](int row) { return first_row + row; };
  auto* squares = reinterpret_cast<float*>(smem.activations + num_rows * row_bytes);
  copy_rows(smem.activations, args.buffers.xs, hidden, num_rows, row_of);
  stage_squares(squares, args.buffers.attn_squares, hidden, num_rows, row_of);
  copies_landed();
  __syncthreads();                         // activations, before they are read
  if (first_row == 0) clear_router(args);  // by the blocks of the first group
  multiply_units<kTokens, kShareColumns>(
      stream, smem.shares, smem.activations, row_bytes, num_rows, num_units, locate,
      [&] { norm_factors(factors, squares, hidden, args.eps, num_rows); },
      [&](int first_unit, int count) {
        constexpr int kPairs = kTileRows / 2;
        for (int i = static_cast<int>(threadIdx.x); i < count * num_rows * kPairs;
             i += static_cast<int>(blockDim.x)) {
          const int column = i / kPairs;
          const int pair = i % kPairs;
          const int unit = first_unit + column / num_rows;
          const int tile = StagedVector::tile(unit);
          const int row = column % num_rows;
          const float low = sum_shares<Stream::kWarps>(smem.shares, column, pair);
          const float high = sum_shares<Stream::kWarps>(smem.shares, column, pair + kPairs);
          finish_pair(args, places, row, first_row + row, tile / kTilesPerHead,
                      tile % kTilesPerHead * kPairs + pair,
                      low * factors[row] + bias.of(args.bias, unit, pair),
                      high * factors[row] + bias.of(args.bias, unit, pair + kPairs));
        }
      });
}

}  // namespace

void qkv_small(const QkvSmallArgs& args, const DeviceInfo& device, Dependence dependence,
               cudaStream_t stream) {
  launch_small(device, dependence, args.step.num_rows, args, "qkv_small", stream,
               SmallVariants<QkvSmallArgs> GPTOSS_SMALL_KERNELS(qkv_small_kernel),
               SmallShape{.threads = kDenseWarps * kWarp,
                          .units = args.weight.row_tiles(),
                          .groups = row_groups(args.step.num_rows),
                          .smem = dense_smem_bytes(args.step.num_rows, args.weight.cols) +
                                  squares_bytes(args.step.num_rows, args.weight.cols),
                          .least_smem = kBesideDown});
}

}  // namespace gptoss::cuda
