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
static_assert(kHeadDim == 2 * kHalf && kHeadDim == kTilesPerHead * kTileRows);

// Where the key of a row and kv head goes; its value is `kv_heads * kPageTokens * 64` further.
__device__ __forceinline__ __nv_bfloat16* key_address(const QkvSmallArgs& args, int row,
                                                      int position, int kv_head) {
  const SegmentInfo& segment = args.step.segments[args.step.segment_of[row]];
  const int group = static_cast<int>(args.group);
  const int page = position / static_cast<int>(kPageTokens) - segment.first_page[group];
  auto* base = reinterpret_cast<std::uint8_t*>(args.step.pages[segment.page_begin[group] + page]);
  auto* keys = reinterpret_cast<__nv_bfloat16*>(base + args.layer_offset);
  const int slot = position % static_cast<int>(kPageTokens);
  return keys + (static_cast<std::int64_t>(kv_head) * kPageTokens + slot) * kHeadDim;
}

// The pair of channels `dim` and `dim + 32` of a head of q, k or v.
__device__ __forceinline__ void finish_pair(const QkvSmallArgs& args, int row, int head, int dim,
                                            float low, float high) {
  const int position = args.step.positions[row];
  if (position < 0) return;
  const bool is_value = head >= args.num_heads + args.num_kv_heads;
  if (!is_value) {
    const float* angles = args.rope_table + static_cast<std::int64_t>(position) * kHeadDim;
    const float cosine = __ldg(angles + dim);
    const float sine = __ldg(angles + kHalf + dim);
    const float rotated = low * cosine - high * sine;
    high = high * cosine + low * sine;
    low = rotated;
  }
  __nv_bfloat16* to;
  if (head < args.num_heads) {
    to = args.buffers.q + (static_cast<std::int64_t>(row) * args.num_heads + head) * kHeadDim;
  } else if (!is_value) {
    to = key_address(args, row, position, head - args.num_heads);
  } else {
    const int kv_head = head - args.num_heads - args.num_kv_heads;
    to = key_address(args, row, position, args.num_kv_heads + kv_head);
  }
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
__global__ void __launch_bounds__(kDenseWarps* kWarp, kTokens <= 8 ? 2 : 1)
    qkv_small_kernel(const __grid_constant__ QkvSmallArgs args) {
  using Stream = DenseStream<kTokens, kCopy>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ float factors[kGroupRows];
  const SmallSmem<Stream> smem(smem_base);
  const int hidden = static_cast<int>(args.weight.cols);
  const int num_pairs = hidden / kPairColumns;
  const int num_units = units_of_block(static_cast<int>(args.weight.row_tiles()));
  const TileLocator locate(args.weight.data, args.weight.k_tiles() * kDenseTileBytes);
  Stream stream(smem.barriers, smem.ring, hidden);
  stream.start(num_units, locate);
  ptx::launch_dependents();
  ptx::wait_for_dependencies();
  clear_router(args);

  for (int first_row = 0; first_row < args.step.num_rows; first_row += kGroupRows) {
    const int num_rows = min(kGroupRows, args.step.num_rows - first_row);
    const auto row_of = [&](int row) { return first_row + row; };
    if (first_row != 0) stream.start(num_units, locate);
    stage_rows<0>(smem.activations, args.buffers.xs, hidden, num_pairs, num_rows, row_of);
    norm_factors(factors, args.buffers.attn_squares, hidden, args.eps, num_rows, row_of);
    __syncthreads();  // activations and factors, before they are read
    multiply_units<kTokens>(
        stream, smem.shares, smem.activations, activation_row_bytes(num_pairs), num_rows, num_units,
        locate, [&](int first_unit, int count) {
          constexpr int kPairs = kTileRows / 2;
          for (int i = static_cast<int>(threadIdx.x); i < count * num_rows * kPairs;
               i += static_cast<int>(blockDim.x)) {
            const int column = i / kPairs;
            const int pair = i % kPairs;
            const int tile = static_cast<int>(blockIdx.x) +
                             (first_unit + column / num_rows) * static_cast<int>(gridDim.x);
            const int row = column % num_rows;
            const __nv_bfloat16* bias = args.bias + tile * kTileRows + pair;
            const float low = sum_shares<Stream::kWarps>(smem.shares, column, pair);
            const float high = sum_shares<Stream::kWarps>(smem.shares, column, pair + kPairs);
            finish_pair(args, first_row + row, tile / kTilesPerHead,
                        tile % kTilesPerHead * kPairs + pair,
                        low * factors[row] + to_float(bias[0]),
                        high * factors[row] + to_float(bias[kPairs]));
          }
        });
  }
}

}  // namespace

void qkv_small(const QkvSmallArgs& args, const DeviceInfo& device, Dependence dependence,
               cudaStream_t stream) {
  launch_small(device, dependence, args.step.num_rows, args, "qkv_small", stream,
               SmallVariants<QkvSmallArgs> GPTOSS_SMALL_KERNELS(qkv_small_kernel),
               SmallShape{.threads = kDenseWarps * kWarp,
                          .units = args.weight.row_tiles(),
                          .smem = dense_smem_bytes(args.step.num_rows, args.weight.cols)});
}

}  // namespace gptoss::cuda
