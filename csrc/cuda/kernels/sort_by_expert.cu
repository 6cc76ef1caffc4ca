// sort_by_expert: a counting sort of the rows * k slots by one block, in the order of slots inside
// an expert, so that the same batch is always cut in the same way. gather_by_expert: rows of x to
// their places, read once, written k times. sort_and_gather: both; of few slots in one kernel.
#include "cuda/device/reduce.h"
#include "cuda/kernels/router_topk.h"
#include "cuda/launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

// Sums over this lane and those before it.
__device__ __forceinline__ std::int32_t warp_prefix(std::int32_t value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const std::int32_t before = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += before;
  }
  return value;
}

// An expert's `count` slots from `place` on, in `parts` tiles of almost the same size, `work` each.
__device__ __forceinline__ void write_tiles(const ExpertSortArgs& args, std::int32_t expert,
                                            std::int32_t place, std::int32_t count,
                                            std::int32_t first_tile, std::int32_t parts,
                                            std::int32_t work_before, std::int32_t work) {
  const std::int32_t end = place + count;
  for (std::int32_t part = 0; part < parts; ++part) {
    const std::int32_t size = (end - place + parts - part - 1) / (parts - part);
    args.tiles[first_tile + part] = {expert, place, size, work_before + part * work};
    place += size;
  }
}

// By one warp: the list of tiles. counts [num_experts]: how many slots each expert has, and
// afterwards the place of its first.
__device__ __forceinline__ void list_tiles(const ExpertSortArgs& args, std::int32_t* counts) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x) % 32;
  std::int32_t slots = 0;
  std::int32_t tiles = 0;
  std::int32_t work = 0;
  for (std::int32_t base = 0; base < args.num_experts; base += 32) {
    const std::int32_t expert = base + lane;
    const std::int32_t count = expert < args.num_experts ? counts[expert] : 0;
    const std::int32_t parts = (count + args.max_tile_tokens - 1) / args.max_tile_tokens;
    const std::int32_t tile = tile_work(parts == 0 ? 0 : (count + parts - 1) / parts);
    const std::int32_t slots_to = slots + warp_prefix(count);
    const std::int32_t tiles_to = tiles + warp_prefix(parts);
    const std::int32_t work_to = work + warp_prefix(parts * tile);
    write_tiles(args, expert, slots_to - count, count, tiles_to - parts, parts,
                work_to - parts * tile, tile);
    if (expert < args.num_experts) counts[expert] = slots_to - count;
    slots = __shfl_sync(kAllLanes, slots_to, 31);
    tiles = __shfl_sync(kAllLanes, tiles_to, 31);
    work = __shfl_sync(kAllLanes, work_to, 31);
  }
  if (lane > 0) return;
  args.tiles[tiles] = {0, slots, 0, work};
  args.num_tiles[0] = tiles;
  for (std::int32_t i = 1; i <= kTileCounters; ++i) args.num_tiles[i] = 0;
}

constexpr int kSortThreads = 1024;
constexpr int kSortWarps = kSortThreads / 32;

// One block. counts: [kSortWarps][num_experts], then [num_experts] offsets.
__global__ void __launch_bounds__(kSortThreads) sort_by_expert_kernel(const ExpertSortArgs args) {
  extern __shared__ std::int32_t counts[];
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int32_t num_experts = args.num_experts;
  std::int32_t* offsets = counts + kSortWarps * num_experts;
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
  if (warp == 0) list_tiles(args, offsets);
  __syncthreads();  // offsets holds places
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

// Up to this many slots each row finds its places by comparing its experts with all others': one
// kernel where the sort and the copies would be two.
constexpr std::int32_t kComparedSlots = 2048;
constexpr int kPlaceThreads = 256;
constexpr int kPlaceWarps = kPlaceThreads / 32;

// Of a row's slots, kSlots from `first` on: how many slots stand before each in the sorted order.
template <int kSlots>
__device__ __forceinline__ void find_places(const ExpertSortArgs& args, std::int32_t first,
                                            std::int32_t count, std::int32_t (*sums)[kPlaceWarps],
                                            std::int32_t* places) {
  std::int32_t mine[kSlots];
  std::int32_t before[kSlots] = {};
#pragma unroll
  for (int i = 0; i < kSlots; ++i) mine[i] = i < count ? args.expert_ids[first + i] : 0;
#pragma unroll 4
  for (std::int32_t slot = static_cast<std::int32_t>(threadIdx.x); slot < args.num_slots;
       slot += kPlaceThreads) {
    const std::int32_t expert = args.expert_ids[slot];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      before[i] += expert < mine[i] || (expert == mine[i] && slot < first + i) ? 1 : 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const auto sum =
        static_cast<std::int32_t>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(before[i])));
    if (threadIdx.x % 32 == 0) sums[i][threadIdx.x / 32] = sum;
  }
  __syncthreads();  // the warps' sums are there
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    std::int32_t place = 0;
    for (int warp = 0; warp < kPlaceWarps; ++warp) place += sums[i][warp];
    places[i] = place;
    if (i < count && threadIdx.x == 0) args.places[first + i] = place;
  }
  __syncthreads();  // the sums are read
}

// The list of tiles, by one block. counts: [num_experts].
__device__ __forceinline__ void count_and_list_tiles(const ExpertSortArgs& args,
                                                     std::int32_t* counts) {
  for (std::int32_t i = threadIdx.x; i < args.num_experts; i += kPlaceThreads) counts[i] = 0;
  __syncthreads();  // zeroed
  for (std::int32_t slot = threadIdx.x; slot < args.num_slots; slot += kPlaceThreads) {
    atomicAdd(&counts[args.expert_ids[slot]], 1);
  }
  __syncthreads();  // counted
  if (threadIdx.x < 32) list_tiles(args, counts);
}

struct PlaceArgs {
  ExpertSortArgs sort;
  GatherArgs gather;
};

// One block a row, and one more for the tiles. Dynamic shared memory: [num_experts] counts.
__global__ void __launch_bounds__(kPlaceThreads) place_rows_kernel(const PlaceArgs args) {
  extern __shared__ std::int32_t counts[];
  constexpr int kSlots = 4;
  __shared__ std::int32_t sums[kSlots][kPlaceWarps];
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int64_t row = blockIdx.x;
  if (row == args.gather.num_rows) {
    count_and_list_tiles(args.sort, counts);
    return;
  }
  const std::int32_t vectors = args.gather.hidden / 8;
  const std::int32_t k = args.gather.experts_per_token;
  const auto* x = reinterpret_cast<const uint4*>(args.gather.x) + row * vectors;
  auto* sorted = reinterpret_cast<uint4*>(args.gather.sorted);
  // The first of the row are on their way while the places are found.
  constexpr int kHeld = 2;
  uint4 held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const auto i = static_cast<std::int32_t>(threadIdx.x) + j * kPlaceThreads;
    held[j] = i < vectors ? x[i] : make_uint4(0, 0, 0, 0);
  }
  for (std::int32_t choice = 0; choice < k; choice += kSlots) {
    const std::int32_t count = min(kSlots, k - choice);
    std::int32_t places[kSlots];
    find_places<kSlots>(args.sort, static_cast<std::int32_t>(row) * k + choice, count, sums,
                        places);
    const auto write = [&](std::int32_t i, const uint4& v) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (slot < count) sorted[static_cast<std::int64_t>(places[slot]) * vectors + i] = v;
      }
    };
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const auto i = static_cast<std::int32_t>(threadIdx.x) + j * kPlaceThreads;
      if (i < vectors) write(i, held[j]);
    }
    for (auto i = static_cast<std::int32_t>(threadIdx.x) + kHeld * kPlaceThreads; i < vectors;
         i += kPlaceThreads) {
      write(i, x[i]);
    }
  }
}

}  // namespace

void sort_by_expert(const ExpertSortArgs& args, cudaStream_t stream) {
  const std::size_t smem_bytes =
      sizeof(std::int32_t) * (kSortWarps + 1) * static_cast<std::size_t>(args.num_experts);
  constexpr std::size_t kLeastLimit = 99 * 1024;  // of what a block may have: 8.6, 8.9, 12.0
  GPTOSS_REQUIRE(InvalidArgument, smem_bytes <= kLeastLimit,
                 "[router_topk] expected at most 768 experts, got ", args.num_experts,
                 "; use device='cpu'");
  launch(sort_by_expert_kernel, {.blocks = 1, .threads = kSortThreads, .smem = smem_bytes}, args,
         "router_topk", stream);
}

void gather_by_expert(const GatherArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  launch(gather_by_expert_kernel, {.blocks = args.num_rows, .threads = kGatherThreads}, args,
         "router_topk", stream);
}

void sort_and_gather(const ExpertSortArgs& sort, const GatherArgs& gather, cudaStream_t stream) {
  if (gather.num_rows == 0) return;
  if (sort.num_slots > kComparedSlots) {
    sort_by_expert(sort, stream);
    gather_by_expert(gather, stream);
    return;
  }
  launch(place_rows_kernel,
         {.blocks = gather.num_rows + 1,
          .threads = kPlaceThreads,
          .smem = sizeof(std::int32_t) * static_cast<std::size_t>(sort.num_experts)},
         PlaceArgs{sort, gather}, "router_topk", stream);
}

}  // namespace gptoss::cuda
