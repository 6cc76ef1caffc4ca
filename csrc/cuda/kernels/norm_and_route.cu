// norm_and_route: rms_norm, the router's product and the choice of experts in one pass: residual
// float32 [rows][hidden] to xs bf16 [rows][hidden], expert_ids and weights [rows][k]. Reads 4 and
// writes 2 bytes a channel of a row, reads the router's 2 * experts * hidden once for eight rows.
//
// Eight rows at a time, as many as mma.sync has columns. Where rows are few and there are clusters,
// eight blocks share them: each has an eighth of the channels, so that the router's matrix is read
// by the whole device, and chooses for one of the rows. Sums run over the parts of the channels in
// order.
#include "cuda/device/choose_experts.h"
#include "cuda/device/row_norm.h"
#include "cuda/kernels/router_topk.h"
#include "cuda/launch.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/mma.h"

namespace gptoss::cuda {
namespace {

constexpr int kRows = 8;
constexpr int kWarps = 8;
constexpr int kMaxRanks = 8;

// How a block's part of the work lies in its shared memory.
struct RouteLayout {
  std::int32_t parts;      // warps that share the channels of one tile of experts
  std::int32_t padded;     // experts, in whole tiles
  std::int32_t row_pitch;  // bytes; 16 more than the channels, so that rows lie in other banks
  std::int32_t sums;       // [parts][padded][kRows] float, bytes from the start
  std::int32_t logits;     // [kRows / ranks][experts] float, bytes from the start
  std::int32_t num_bytes;

  __host__ __device__ RouteLayout(const DenseTiles& router, std::int32_t ranks) {
    const auto tiles = static_cast<std::int32_t>(router.row_tiles());
    const auto k_tiles = static_cast<std::int32_t>(router.k_tiles());
    parts = tiles < kWarps ? kWarps / tiles : 1;
    padded = tiles * kTileRows;
    row_pitch = (k_tiles + ranks - 1) / ranks * kTileK * 2 + 16;
    sums = kRows * row_pitch;
    logits = sums + parts * padded * kRows * 4;
    num_bytes = logits + kRows / ranks * padded * 4;
  }
};

// The channels that a block of a cluster has.
struct Channels {
  std::int32_t begin_tile;
  std::int32_t end_tile;

  __device__ Channels(const DenseTiles& router, std::int32_t rank, std::int32_t ranks) {
    const auto k_tiles = static_cast<std::int32_t>(router.k_tiles());
    begin_tile = rank * k_tiles / ranks;
    end_tile = (rank + 1) * k_tiles / ranks;
  }
  __device__ std::int32_t first() const { return begin_tile * kTileK; }
  __device__ std::int32_t fours() const { return (end_tile - begin_tile) * (kTileK / 4); }
};

template <int kRanks>
__device__ __forceinline__ void sync_ranks() {
  if constexpr (kRanks == 1) {
    __syncthreads();
  } else {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    ptx::cluster_arrive();
    ptx::cluster_wait();
#endif
  }
}

template <int kRanks>
__device__ __forceinline__ const float* of_rank(const float* shared, int rank) {
  if constexpr (kRanks == 1) return shared;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  return ptx::map_to_rank(shared, static_cast<unsigned>(rank));
#else
  return shared;
#endif
}

// bf16(rms_norm) of a warp's row, this block's channels of it, to shared and global memory; zeros
// for a row past the last.
template <int kRanks>
__device__ __forceinline__ void norm_row(const RouteArgs& args, const Channels& channels,
                                         std::int64_t row, float* squares_of_rows,
                                         std::uint8_t* out) {
  // The first of the row stay in registers, all under way at once; a longer row is read again.
  constexpr std::int32_t kHeld = 24 / kRanks;
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const auto hidden = static_cast<std::int32_t>(args.router.cols);
  const std::int32_t fours = channels.fours();
  const bool there = row < args.num_rows;
  const float* x = args.residual + (there ? row * hidden : 0) + channels.first();
  const __nv_bfloat16* scale = args.scale + channels.first();
  const auto load = [&](std::int32_t i) {
    return there ? *reinterpret_cast<const float4*>(x + 4 * i) : make_float4(0, 0, 0, 0);
  };
  float4 held[kHeld];
  float4 scales[kHeld];
  float sum = 0.0f;
#pragma unroll
  for (std::int32_t j = 0; j < kHeld; ++j) {
    const std::int32_t i = lane + 32 * j;
    held[j] = i < fours ? load(i) : make_float4(0, 0, 0, 0);
    scales[j] = i < fours ? load_four(scale + 4 * i) : make_float4(0, 0, 0, 0);
  }
#pragma unroll
  for (std::int32_t j = 0; j < kHeld; ++j) sum += squares(held[j]);
  for (std::int32_t i = lane + 32 * kHeld; i < fours; i += 32) sum += squares(load(i));
  sum = warp_sum(sum);
  if constexpr (kRanks > 1) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (lane == 0) squares_of_rows[warp] = sum;
    sync_ranks<kRanks>();  // every block's sums are there
    const float part = lane < kRanks ? of_rank<kRanks>(squares_of_rows, lane)[warp] : 0.0f;
    sum = 0.0f;
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) sum += __shfl_sync(kAllLanes, part, rank);
  }
  const float inverse = inverse_rms(sum, args.eps, hidden);
  __nv_bfloat16* xs = args.xs + (there ? row * hidden : 0) + channels.first();
  const auto write = [&](std::int32_t i, float4 v, float4 s) {
    const float4 y = scaled(v, inverse, s);
    store_four(reinterpret_cast<__nv_bfloat16*>(out) + 4 * i, y);
    if (there) store_four(xs + 4 * i, y);
  };
#pragma unroll
  for (std::int32_t j = 0; j < kHeld; ++j) {
    const std::int32_t i = lane + 32 * j;
    if (i < fours) write(i, held[j], scales[j]);
  }
  for (std::int32_t i = lane + 32 * kHeld; i < fours; i += 32) {
    write(i, load(i), load_four(scale + 4 * i));
  }
}

// A warp's part of the channels of one tile of experts for all rows of the block.
__device__ __forceinline__ void route_tile(const uint4* weights, const std::uint8_t* rows,
                                           std::int32_t row_pitch, std::int32_t begin,
                                           std::int32_t end, float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::uint8_t* x = rows + lane / 4 * row_pitch + lane % 4 * 4;
  constexpr int kAhead = 8;
  float d[4] = {};
  for (std::int32_t first = begin; first < end; first += kAhead) {
    uint4 a[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      a[i] = first + i < end ? weights[(first + i) * kWarp + lane] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= end) break;
      const std::uint8_t* at = x + (first + i) * (kTileK * 2);
      const std::uint32_t fragment[4] = {a[i].x, a[i].y, a[i].z, a[i].w};
      ptx::mma_m16n8k16(d, fragment, *reinterpret_cast<const std::uint32_t*>(at),
                        *reinterpret_cast<const std::uint32_t*>(at + kTileK));
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[(lane / 4 + i / 2 * 8) * kRows + lane % 4 * 2 + i % 2] = d[i];
  }
}

// Every warp's tiles and parts; then the parts of a tile added in order, in the first's place.
__device__ __forceinline__ void route_rows(const DenseTiles& router, const Channels& channels,
                                           const RouteLayout& layout, const std::uint8_t* rows,
                                           float* sums) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto tiles = static_cast<std::int32_t>(router.row_tiles());
  const std::int32_t k_tiles = channels.end_tile - channels.begin_tile;
  const std::int32_t part = warp % layout.parts;
  for (std::int32_t tile = warp / layout.parts; tile < tiles; tile += kWarps / layout.parts) {
    const auto* weights = reinterpret_cast<const uint4*>(
        router.data + (tile * router.k_tiles() + channels.begin_tile) * kDenseTileBytes);
    route_tile(weights, rows, layout.row_pitch, part * k_tiles / layout.parts,
               (part + 1) * k_tiles / layout.parts,
               sums + (part * layout.padded + tile * kTileRows) * kRows);
  }
  __syncthreads();  // every warp's sums are there
  const std::int32_t count = layout.padded * kRows;
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < count; i += kWarps * kWarp) {
    float sum = sums[i];
    for (std::int32_t other = 1; other < layout.parts; ++other) sum += sums[other * count + i];
    sums[i] = sum;
  }
}

// Asks for this block's channels of the router, which no kernel writes.
__device__ __forceinline__ void prefetch_router(const DenseTiles& router,
                                                const Channels& channels) {
  const auto tile = static_cast<std::int64_t>(threadIdx.x);
  if (tile >= router.row_tiles()) return;
  const std::int32_t count = channels.end_tile - channels.begin_tile;
  if (count == 0) return;
  ptx::bulk_prefetch_l2(
      router.data + (tile * router.k_tiles() + channels.begin_tile) * kDenseTileBytes,
      static_cast<std::uint32_t>(count * kDenseTileBytes));
}

template <int kRanks>
__global__ void __launch_bounds__(kWarps * 32) norm_and_route_kernel(const RouteArgs args) {
  extern __shared__ __align__(16) std::uint8_t smem[];
  __shared__ float squares_of_rows[kRows];
  const RouteLayout layout(args.router, kRanks);
  const auto rank = static_cast<std::int32_t>(blockIdx.x % kRanks);
  const Channels channels(args.router, rank, kRanks);
  prefetch_router(args.router, channels);
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x / kRanks) * kRows;
  auto* sums = reinterpret_cast<float*>(smem + layout.sums);
  auto* logits = reinterpret_cast<float*>(smem + layout.logits);
  norm_row<kRanks>(args, channels, first_row + warp, squares_of_rows,
                   smem + warp * layout.row_pitch);
  __syncthreads();  // all rows are there
  route_rows(args.router, channels, layout, smem, sums);
  sync_ranks<kRanks>();  // every block's sums are there

  constexpr int kMyRows = kRows / kRanks;
  const auto num_experts = static_cast<std::int32_t>(args.router.rows);
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < kMyRows * num_experts;
       i += kWarps * kWarp) {
    const std::int32_t expert = i % num_experts;
    const std::int32_t place = expert * kRows + rank * kMyRows + i / num_experts;
    float parts[kRanks];
#pragma unroll
    for (int other = 0; other < kRanks; ++other) parts[other] = of_rank<kRanks>(sums, other)[place];
    float sum = 0.0f;
#pragma unroll
    for (int other = 0; other < kRanks; ++other) sum += parts[other];
    logits[i] = sum + __bfloat162float(args.bias[expert]);
  }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if constexpr (kRanks > 1) ptx::cluster_arrive();  // the others' sums are read
#endif
  __syncthreads();  // the logits are there
  const std::int64_t row = first_row + rank * kMyRows + warp;
  if (warp < kMyRows && row < args.num_rows) {
    const std::int64_t first = row * args.experts_per_token;
    choose_experts(logits + warp * num_experts, num_experts, args.experts_per_token,
                   args.forced == nullptr ? nullptr : args.forced + first, args.expert_ids + first,
                   args.weights + first);
  }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if constexpr (kRanks > 1) ptx::cluster_wait();  // no block ends while another reads its sums
#endif
}

template <int kRanks>
void launch_ranks(const RouteArgs& args, cudaStream_t stream) {
  const RouteLayout layout(args.router, kRanks);
  launch(norm_and_route_kernel<kRanks>,
         {.blocks = (args.num_rows + kRows - 1) / kRows * kRanks,
          .threads = kWarps * 32,
          .smem = static_cast<std::size_t>(layout.num_bytes),
          .cluster = kRanks},
         args, "router_topk", stream);
}

}  // namespace

void norm_and_route(const RouteArgs& args, const DeviceInfo& device, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  GPTOSS_REQUIRE(InvalidArgument, args.router.cols % kTileK == 0,
                 "[router_topk] expected a multiple of 16 channels, got ", args.router.cols,
                 "; use the CPU for others");
  // H200: 64 rows 6 us with clusters and 13 without, 2,048 rows 42 and 21.
  constexpr std::int32_t kRowsForClusters = 1024;
  if (device.compute_capability >= 90 && args.num_rows <= kRowsForClusters) {
    launch_ranks<kMaxRanks>(args, stream);
  } else {
    launch_ranks<1>(args, stream);
  }
}

}  // namespace gptoss::cuda
