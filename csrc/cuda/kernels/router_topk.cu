// router_topk: float32 logits [rows][experts] to the ids and softmax weights of the k largest, one
// warp a row, k rounds of a warp's maximum over keys that order as (value, lower index).
// norm_and_route: the same behind rms_norm and the router's product (mma.sync, x bf16, each warp a
// fixed part of the columns, parts added in order), eight rows a block.
// sort_by_expert: a counting sort of the rows * k slots by one block, in the order of slots inside
// an expert, so that the same batch is always cut in the same way. gather_by_expert: rows of x to
// their places, read once, written k times.
#include "cuda/device/reduce.h"
#include "cuda/device/row_norm.h"
#include "cuda/kernels/router_topk.h"
#include "cuda/launch.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/mma.h"

namespace gptoss::cuda {
namespace {

constexpr int kTopkWarps = 8;

// Ascending as the numbers ascend, NaN last, -0 as 0.
__device__ __forceinline__ std::uint32_t rank_of(float value) {
  if (value != value) return 0xffffffffu;
  const std::uint32_t bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ std::uint64_t warp_largest(std::uint64_t key) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const std::uint64_t other = __shfl_xor_sync(kAllLanes, key, offset);
    key = other > key ? other : key;
  }
  return key;
}

// One row's choice by a warp: logits [num_experts] in global or shared memory.
__device__ __forceinline__ void choose_experts(const float* logits, std::int32_t num_experts,
                                               std::int32_t k, const std::int32_t* forced,
                                               std::int32_t* ids, float* weights) {
  const std::int32_t lane = threadIdx.x % 32;
  std::uint64_t last = ~std::uint64_t{0};
  float top = 0.0f;
  float mine = 0.0f;  // lane i: the logit of choice i
  for (std::int32_t choice = 0; choice < k; ++choice) {
    std::int32_t expert;
    if (forced != nullptr) {
      expert = forced[choice];
    } else {
      std::uint64_t best = 0;
      for (std::int32_t i = lane; i < num_experts; i += 32) {
        const std::uint64_t key =
            static_cast<std::uint64_t>(rank_of(logits[i])) << 32 | static_cast<std::uint32_t>(~i);
        if (key < last && key > best) best = key;
      }
      last = warp_largest(best);
      expert = static_cast<std::int32_t>(~static_cast<std::uint32_t>(last));
    }
    if (lane == 0) ids[choice] = expert;
    const float logit = logits[expert];
    if (lane == choice) mine = logit;
    top = choice == 0 || logit > top ? logit : top;
  }
  __syncwarp();  // the ids are written
  // Choices past the warp's width are looked up again.
  const auto power = [&](std::int32_t choice) {
    const float logit = choice < 32 ? __shfl_sync(kAllLanes, mine, choice) : logits[ids[choice]];
    return expf(logit - top);
  };
  float sum = 0.0f;
  for (std::int32_t choice = 0; choice < k; ++choice) sum += power(choice);
  for (std::int32_t choice = 0; choice < k; ++choice) {
    const float weight = power(choice) / sum;
    if (lane == choice % 32) weights[choice] = weight;
  }
}

__global__ void __launch_bounds__(kTopkWarps * 32) router_topk_kernel(const TopkArgs args) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int64_t row = blockIdx.x * kTopkWarps + threadIdx.x / 32;
  if (row >= args.num_rows) return;
  const std::int64_t first = row * args.experts_per_token;
  choose_experts(args.logits + row * args.num_experts, args.num_experts, args.experts_per_token,
                 args.forced == nullptr ? nullptr : args.forced + first, args.expert_ids + first,
                 args.weights + first);
}

// A block has as many rows as mma has columns; each of its warps norms one, multiplies a part of
// the columns for all, and chooses for one.
constexpr int kRouteRows = 8;
constexpr int kRouteTiles = 2;  // of 16 experts at a time

struct RouteSmem {
  std::int32_t row_pitch;  // bytes; 16 more than a row, so that eight rows lie in eight banks
  std::int32_t sums;       // [warps][16 kRouteTiles][kRouteRows] float, bytes from the start
  std::int32_t logits;     // [kRouteRows][num_experts] float, bytes from the start
  std::int32_t num_bytes;

  __host__ __device__ explicit RouteSmem(const DenseTiles& router)
      : row_pitch(static_cast<std::int32_t>(router.cols) * 2 + 16),
        sums(kRouteRows * row_pitch),
        logits(sums + kRouteRows * kRouteTiles * kTileRows * kRouteRows * 4),
        num_bytes(logits + kRouteRows * static_cast<std::int32_t>(router.rows) * 4) {}
};

// bf16(rms_norm) of a warp's row to shared and global memory; zeros for a row past the last.
__device__ __forceinline__ void norm_row(const RouteArgs& args, std::int64_t row,
                                         std::uint8_t* out) {
  const std::int32_t lane = threadIdx.x % 32;
  const auto hidden = static_cast<std::int32_t>(args.router.cols);
  if (row >= args.num_rows) {
    for (std::int32_t i = lane; i < hidden / 4; i += 32) {
      *reinterpret_cast<uint2*>(out + 8 * i) = make_uint2(0, 0);
    }
    return;
  }
  const float* x = args.residual + row * hidden;
  const auto load = [&](std::int32_t i) { return *reinterpret_cast<const float4*>(x + 4 * i); };
  // The first of the row stay in registers, all under way at once; a longer row is read again.
  constexpr std::int32_t kHeld = 24;
  float4 held[kHeld];
  float sum = 0.0f;
#pragma unroll
  for (std::int32_t j = 0; j < kHeld; ++j) {
    const std::int32_t i = lane + 32 * j;
    held[j] = i < hidden / 4 ? load(i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
#pragma unroll
  for (std::int32_t j = 0; j < kHeld; ++j) sum += squares(held[j]);
  for (std::int32_t i = lane + 32 * kHeld; i < hidden / 4; i += 32) sum += squares(load(i));
  const float inverse = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(hidden) + args.eps);
  __nv_bfloat16* xs = args.xs + row * hidden;
  const auto write = [&](std::int32_t i, float4 v) {
    const float4 s = load_four(args.scale + 4 * i);
    const float4 y = make_float4(v.x * inverse * s.x, v.y * inverse * s.y, v.z * inverse * s.z,
                                 v.w * inverse * s.w);
    store_four(reinterpret_cast<__nv_bfloat16*>(out) + 4 * i, y);
    store_four(xs + 4 * i, y);
  };
#pragma unroll
  for (std::int32_t j = 0; j < kHeld; ++j) {
    const std::int32_t i = lane + 32 * j;
    if (i < hidden / 4) write(i, held[j]);
  }
  for (std::int32_t i = lane + 32 * kHeld; i < hidden / 4; i += 32) write(i, load(i));
}

// A warp's part of the sums of kRouteTiles row tiles for all rows of the block.
__device__ __forceinline__ void route_tiles(const DenseTiles& router, std::int64_t first_tile,
                                            const std::uint8_t* rows, std::int32_t row_pitch,
                                            float* sums) {
  const std::int32_t warp = threadIdx.x / 32;
  const std::int32_t lane = threadIdx.x % 32;
  const std::uint8_t* x = rows + lane / 4 * row_pitch + lane % 4 * 4;
  const auto k_tiles = static_cast<std::int32_t>(router.k_tiles());
  const std::int32_t begin = warp * k_tiles / kRouteRows;
  const std::int32_t end = (warp + 1) * k_tiles / kRouteRows;
  float d[kRouteTiles][4] = {};
#pragma unroll 8
  for (std::int32_t k = begin; k < end; ++k) {
    const auto b0 = *reinterpret_cast<const std::uint32_t*>(x + k * 32);
    const auto b1 = *reinterpret_cast<const std::uint32_t*>(x + k * 32 + 16);
#pragma unroll
    for (int tile = 0; tile < kRouteTiles; ++tile) {
      if (first_tile + tile >= router.row_tiles()) continue;
      const uint4 v = *reinterpret_cast<const uint4*>(
          router.data + ((first_tile + tile) * k_tiles + k) * kDenseTileBytes + lane * 16);
      const std::uint32_t a[4] = {v.x, v.y, v.z, v.w};
      ptx::mma_m16n8k16(d[tile], a, b0, b1);
    }
  }
  float* out = sums + warp * kRouteTiles * kTileRows * kRouteRows;
#pragma unroll
  for (int tile = 0; tile < kRouteTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = tile * kTileRows + lane / 4 + i / 2 * 8;
      out[row * kRouteRows + lane % 4 * 2 + i % 2] = d[tile][i];
    }
  }
}

__global__ void __launch_bounds__(kRouteRows * 32) norm_and_route_kernel(const RouteArgs args) {
  extern __shared__ __align__(16) std::uint8_t smem[];
  const RouteSmem layout(args.router);
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int32_t warp = threadIdx.x / 32;
  const auto num_experts = static_cast<std::int32_t>(args.router.rows);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRouteRows + warp;
  auto* sums = reinterpret_cast<float*>(smem + layout.sums);
  auto* logits = reinterpret_cast<float*>(smem + layout.logits);
  norm_row(args, row, smem + warp * layout.row_pitch);
  __syncthreads();  // all rows are there
  for (std::int64_t tile = 0; tile < args.router.row_tiles(); tile += kRouteTiles) {
    route_tiles(args.router, tile, smem, layout.row_pitch, sums);
    __syncthreads();  // the warps' sums are there
    constexpr int kSums = kRouteTiles * kTileRows * kRouteRows;
    for (std::int32_t i = threadIdx.x; i < kSums; i += kRouteRows * 32) {
      const std::int32_t expert = static_cast<std::int32_t>(tile) * kTileRows + i / kRouteRows;
      if (expert >= num_experts) break;
      float sum = 0.0f;
      for (int w = 0; w < kRouteRows; ++w) sum += sums[w * kSums + i];
      logits[i % kRouteRows * num_experts + expert] = sum + __bfloat162float(args.bias[expert]);
    }
    __syncthreads();  // the sums are read, the logits there
  }
  if (row >= args.num_rows) return;
  const std::int64_t first = row * args.experts_per_token;
  choose_experts(logits + warp * num_experts, num_experts, args.experts_per_token,
                 args.forced == nullptr ? nullptr : args.forced + first, args.expert_ids + first,
                 args.weights + first);
}

constexpr int kSortThreads = 1024;
constexpr int kSortWarps = kSortThreads / 32;

// One block. counts: [kSortWarps][num_experts], then [num_experts + 1] offsets and as many tiles.
__global__ void __launch_bounds__(kSortThreads) sort_by_expert_kernel(const ExpertSortArgs args) {
  extern __shared__ std::int32_t counts[];
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int32_t num_experts = args.num_experts;
  std::int32_t* offsets = counts + kSortWarps * num_experts;
  std::int32_t* first_tiles = offsets + num_experts + 1;
  const std::int32_t warp = threadIdx.x / 32;
  const std::int32_t lane = threadIdx.x % 32;
  // Each warp has a stretch of slots, in multiples of its width.
  const std::int32_t stretch = (args.num_slots + kSortThreads - 1) / kSortThreads * 32;
  const std::int32_t begin = warp * stretch;
  const std::int32_t end = min(begin + stretch, args.num_slots);
  std::int32_t* mine = counts + warp * num_experts;
  for (std::int32_t i = lane; i < num_experts; i += 32) mine[i] = 0;
  __syncwarp();  // zeroed
  for (std::int32_t slot = begin + lane; slot < end; slot += 32) {
    atomicAdd(&mine[args.expert_ids[slot]], 1);
  }
  __syncthreads();  // every warp has counted
  // Before each warp's slots of an expert come those of the warps before it.
  for (std::int32_t expert = threadIdx.x; expert < num_experts; expert += kSortThreads) {
    std::int32_t sum = 0;
    for (std::int32_t w = 0; w < kSortWarps; ++w) {
      const std::int32_t count = counts[w * num_experts + expert];
      counts[w * num_experts + expert] = sum;
      sum += count;
    }
    offsets[expert] = sum;
  }
  __syncthreads();  // offsets holds the counts
  if (warp == 0) {
    std::int32_t slots = 0;
    std::int32_t tiles = 0;
    for (std::int32_t base = 0; base < num_experts; base += 32) {
      const std::int32_t expert = base + lane;
      const std::int32_t count = expert < num_experts ? offsets[expert] : 0;
      const std::int32_t parts = (count + args.max_tile_tokens - 1) / args.max_tile_tokens;
      std::int32_t slots_to = count;
      std::int32_t tiles_to = parts;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const std::int32_t slots_before = __shfl_up_sync(kAllLanes, slots_to, offset);
        const std::int32_t tiles_before = __shfl_up_sync(kAllLanes, tiles_to, offset);
        if (lane >= offset) {
          slots_to += slots_before;
          tiles_to += tiles_before;
        }
      }
      if (expert < num_experts) {
        offsets[expert] = slots + slots_to - count;
        first_tiles[expert] = tiles + tiles_to - parts;
      }
      slots += __shfl_sync(kAllLanes, slots_to, 31);
      tiles += __shfl_sync(kAllLanes, tiles_to, 31);
    }
    if (lane == 0) {
      offsets[num_experts] = slots;
      first_tiles[num_experts] = tiles;
      *args.num_tiles = tiles;
    }
  }
  __syncthreads();  // offsets and first_tiles are final
  for (std::int32_t expert = threadIdx.x; expert < num_experts; expert += kSortThreads) {
    const std::int32_t parts = first_tiles[expert + 1] - first_tiles[expert];
    std::int32_t place = offsets[expert];
    for (std::int32_t part = 0; part < parts; ++part) {
      const std::int32_t left = offsets[expert + 1] - place;
      const std::int32_t count = (left + parts - part - 1) / (parts - part);
      args.tiles[first_tiles[expert] + part] = {expert, place, count};
      place += count;
    }
  }
  for (std::int32_t base = begin; base < end; base += 32) {
    const std::int32_t slot = base + lane;
    const std::int32_t expert = slot < end ? args.expert_ids[slot] : -1;
    const unsigned same = __match_any_sync(kAllLanes, expert);
    const std::int32_t rank = __popc(same & ((1u << lane) - 1));
    if (slot < end) args.places[slot] = offsets[expert] + mine[expert] + rank;
    __syncwarp();  // all have read mine
    if (slot < end && rank == 0) mine[expert] += __popc(same);
    __syncwarp();  // mine is up to date
  }
}

constexpr int kGatherThreads = 128;

__global__ void __launch_bounds__(kGatherThreads) gather_by_expert_kernel(const GatherArgs args) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int64_t row = blockIdx.x;
  const std::int32_t vectors = args.hidden / 8;
  const auto* x = reinterpret_cast<const uint4*>(args.x) + row * vectors;
  auto* sorted = reinterpret_cast<uint4*>(args.sorted);
  const std::int32_t* places = args.places + row * args.experts_per_token;
  for (std::int32_t i = threadIdx.x; i < vectors; i += kGatherThreads) {
    const uint4 v = x[i];
    for (std::int32_t choice = 0; choice < args.experts_per_token; ++choice) {
      sorted[static_cast<std::int64_t>(places[choice]) * vectors + i] = v;
    }
  }
}

}  // namespace

void router_topk(const TopkArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  launch(router_topk_kernel,
         {.blocks = (args.num_rows + kTopkWarps - 1) / kTopkWarps, .threads = kTopkWarps * 32},
         args, "router_topk", stream);
}

void norm_and_route(const RouteArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  GPTOSS_REQUIRE(InvalidArgument, args.router.cols % kTileK == 0,
                 "[router_topk] expected a multiple of 16 channels, got ", args.router.cols,
                 "; use the CPU for others");
  const RouteSmem layout(args.router);
  launch(norm_and_route_kernel,
         {.blocks = (args.num_rows + kRouteRows - 1) / kRouteRows,
          .threads = kRouteRows * 32,
          .smem = static_cast<std::size_t>(layout.num_bytes)},
         args, "router_topk", stream);
}

void sort_by_expert(const ExpertSortArgs& args, cudaStream_t stream) {
  const std::size_t smem_bytes =
      sizeof(std::int32_t) * (kSortWarps * static_cast<std::size_t>(args.num_experts) +
                              2 * static_cast<std::size_t>(args.num_experts) + 2);
  constexpr std::size_t kLeastLimit = 99 * 1024;  // of what a block may have: 8.6, 8.9, 12.0
  GPTOSS_REQUIRE(InvalidArgument, smem_bytes <= kLeastLimit,
                 "[router_topk] expected at most 745 experts, got ", args.num_experts,
                 "; use device='cpu'");
  launch(sort_by_expert_kernel, {.blocks = 1, .threads = kSortThreads, .smem = smem_bytes}, args,
         "router_topk", stream);
}

void gather_by_expert(const GatherArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  launch(gather_by_expert_kernel, {.blocks = args.num_rows, .threads = kGatherThreads}, args,
         "router_topk", stream);
}

}  // namespace gptoss::cuda
