// router_topk: float32 logits [rows][experts] to the ids and softmax weights of the k largest, one
// warp a row, k rounds of a warp's maximum over keys that order as (value, lower index).
// sort_by_expert: a counting sort of the rows * k slots by one block, in the order of slots inside
// an expert, so that the same batch is always cut in the same way. gather_by_expert: rows of x to
// their places, read once, written k times.
#include "cuda/device.h"
#include "cuda/device/reduce.h"
#include "cuda/kernels/router_topk.h"

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

__global__ void __launch_bounds__(kTopkWarps * 32) router_topk_kernel(const TopkArgs args) {
  const std::int32_t row = blockIdx.x * kTopkWarps + threadIdx.x / 32;
  const std::int32_t lane = threadIdx.x % 32;
  if (row >= args.num_rows) return;
  const std::int32_t k = args.experts_per_token;
  const float* logits = args.logits + static_cast<std::int64_t>(row) * args.num_experts;
  const std::int64_t first = static_cast<std::int64_t>(row) * k;
  std::int32_t* ids = args.expert_ids + first;
  float* weights = args.weights + first;
  std::uint64_t last = ~std::uint64_t{0};
  float top = 0.0f;
  for (std::int32_t choice = 0; choice < k; ++choice) {
    std::int32_t expert;
    if (args.forced != nullptr) {
      expert = args.forced[first + choice];
    } else {
      std::uint64_t best = 0;
      for (std::int32_t i = lane; i < args.num_experts; i += 32) {
        const std::uint64_t key =
            static_cast<std::uint64_t>(rank_of(logits[i])) << 32 | static_cast<std::uint32_t>(~i);
        if (key < last && key > best) best = key;
      }
      last = warp_largest(best);
      expert = static_cast<std::int32_t>(~static_cast<std::uint32_t>(last));
    }
    if (lane == 0) ids[choice] = expert;
    const float logit = logits[expert];
    top = choice == 0 || logit > top ? logit : top;
  }
  __syncwarp();  // the ids are written
  float sum = 0.0f;
  for (std::int32_t choice = 0; choice < k; ++choice) sum += expf(logits[ids[choice]] - top);
  for (std::int32_t choice = lane; choice < k; choice += 32) {
    weights[choice] = expf(logits[ids[choice]] - top) / sum;
  }
}

constexpr int kSortThreads = 1024;
constexpr int kSortWarps = kSortThreads / 32;

// One block. counts: [kSortWarps][num_experts], then [num_experts + 1] offsets and as many tiles.
__global__ void __launch_bounds__(kSortThreads) sort_by_expert_kernel(const ExpertSortArgs args) {
  extern __shared__ std::int32_t counts[];
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
  const auto blocks = static_cast<unsigned>((args.num_rows + kTopkWarps - 1) / kTopkWarps);
  router_topk_kernel<<<blocks, kTopkWarps * 32, 0, stream>>>(args);
  check_launch("router_topk");
}

void sort_by_expert(const ExpertSortArgs& args, cudaStream_t stream) {
  const std::size_t smem_bytes =
      sizeof(std::int32_t) * (kSortWarps * static_cast<std::size_t>(args.num_experts) +
                              2 * static_cast<std::size_t>(args.num_experts) + 2);
  constexpr std::size_t kAlwaysThere = 48 * 1024;
  GPTOSS_REQUIRE(InvalidArgument, smem_bytes <= kAlwaysThere,
                 "[router_topk] expected at most 361 experts, got ", args.num_experts,
                 "; use device='cpu'");
  sort_by_expert_kernel<<<1, kSortThreads, smem_bytes, stream>>>(args);
  check_launch("router_topk");
}

void gather_by_expert(const GatherArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  gather_by_expert_kernel<<<static_cast<unsigned>(args.num_rows), kGatherThreads, 0, stream>>>(
      args);
  check_launch("router_topk");
}

}  // namespace gptoss::cuda
