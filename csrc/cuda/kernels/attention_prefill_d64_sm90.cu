// attention over many rows, as attention_prefill_d64.cu, on Hopper's warpgroup products: a block
// takes 192 queries, a warpgroup 64 of them; a fourth brings 128 keys and values a step through a
// ring of asynchronous copies. While the tensor cores add a step's values, the next step's weights
// are computed, and the warpgroups issue in turn. Softmax float32, weights rounded to bf16; maxima
// follow the scores only when these outgrow them by 2^8. Steps begin at absolute multiples and one
// out of a row's sight changes none of its sums, so that a row's result does not depend on its
// neighbours.
#include "cuda/device/softmax.h"
#include "cuda/kernels/attention_prefill.h"
#include "cuda/layout.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/named_barrier.h"
#include "cuda/ptx/proxy.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/ptx/wgmma_attention.h"

namespace gptoss::cuda {
namespace {

constexpr int kDim = static_cast<int>(kHeadDim);
constexpr int kPage = static_cast<int>(kPageTokens);
constexpr int kStepKeys = 128;
constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kConsumers = 3;       // warpgroups
constexpr int kGroupQueries = 64;
constexpr int kTileQueries = kConsumers * kGroupQueries;
constexpr int kThreads = (kConsumers + 1) * kGroupThreads;
constexpr int kProducerRegisters = 32;
constexpr int kConsumerRegisters = 160;
constexpr int kRowBytes = kDim * 2;
constexpr int kStages = 4;
constexpr int kLag = 2;  // steps of copies under way before the oldest is waited for
constexpr int kTileBytes = kStepKeys * kRowBytes;
constexpr int kStageBytes = 2 * kTileBytes;
constexpr int kQueryBytes = kTileQueries * kRowBytes;
constexpr int kSwizzleBytes = 1024;  // tiles begin at multiples
constexpr int kSmemBytes = kSwizzleBytes + kQueryBytes + kStages * kStageBytes;
constexpr int kChunk = 16;
constexpr int kChunks = kRowBytes / kChunk;
constexpr int kScores = kStepKeys / 2;  // of a thread: two rows, every fourth pair of columns
constexpr int kOut = kDim / 2;

struct PrefillParams {
  AttentionArgs args;
  int heads;
  int num_tiles;
};

struct Barriers {
  std::uint64_t full[kStages];
  std::uint64_t empty[kStages];
};

// What both roles know of the block's tile.
struct Work {
  const PrefillParams& params;
  const SegmentInfo& segment;
  QueryTile tile;
  TileKeys keys;
  int kv_head;

  __device__ int first_step() const { return keys.first / kStepKeys; }
  __device__ int end_step() const { return keys.last_position / kStepKeys + 1; }
  // First element of a query's 64 in q and out.
  __device__ std::int64_t element_of(int query) const {
    const std::int64_t row = segment.first_row + query / params.heads;
    const int head = kv_head * params.heads + query % params.heads;
    return (row * params.args.num_heads + head) * kDim;
  }
};

__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kRowBytes + (chunk ^ (row % 8)) * kChunk;
}

// The fourth warpgroup: keys and values of every step to the ring. Keys that no query of the tile
// sees become zeros, since what stands there might not be a number.
__device__ __forceinline__ void produce(const Work& work, std::uint8_t* ring, Barriers& barriers) {
  const AttentionArgs& args = work.params.args;
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int group = static_cast<int>(args.group);
  __nv_bfloat16* const* pages =
      args.step.pages + work.segment.page_begin[group] - work.segment.first_page[group];
  const std::int64_t head_bytes = std::int64_t{kPage} * kRowBytes;
  const std::int64_t offset = args.layer_offset + work.kv_head * head_bytes;
  const std::int64_t to_values = args.num_kv_heads * head_bytes;
  const int num_steps = work.end_step() - work.first_step();
  const auto publish = [&](int i) {
    ptx::fence_async_proxy();
    __syncwarp();  // all lanes' copies have landed and are fenced
    if (thread % kWarp == 0) {
      ptx::mbarrier_arrive(ptx::shared_address(&barriers.full[i % kStages]));
    }
  };
  for (int i = 0; i < num_steps; ++i) {
    std::uint8_t* stage = ring + i % kStages * kStageBytes;
    ptx::mbarrier_wait(ptx::shared_address(&barriers.empty[i % kStages]), i / kStages % 2 ^ 1);
#pragma unroll
    for (int half = 0; half < kStepKeys / kPage; ++half) {
      const int page = (work.first_step() + i) * (kStepKeys / kPage) + half;
      const bool there = page >= work.keys.first_page && page < work.keys.end_page;
      const std::uint8_t* from =
          reinterpret_cast<const std::uint8_t*>(pages[there ? page : work.keys.first_page]) +
          offset;
#pragma unroll
      for (int j = 0; j < kPage * kChunks / kGroupThreads; ++j) {
        const int index = j * kGroupThreads + thread;
        const int in_page = index / kChunks;
        const int key = page * kPage + in_page;
        const bool visible = key >= work.keys.first && key <= work.keys.last_position;
        std::uint8_t* to = stage + swizzled(half * kPage + in_page, index % kChunks);
        ptx::cp_async_16_zero_fill(to, from + index * kChunk, visible ? kChunk : 0);
        ptx::cp_async_16_zero_fill(to + kTileBytes, from + to_values + index * kChunk,
                                   visible ? kChunk : 0);
      }
    }
    ptx::cp_async_commit();
    if (i >= kLag) {
      ptx::cp_async_wait<kLag>();
      publish(i - kLag);
    }
  }
  ptx::cp_async_wait<0>();
  for (int i = max(0, num_steps - kLag); i < num_steps; ++i) publish(i);
}

// A warpgroup's 64 queries to shared memory; past the tile's last, the last again.
__device__ __forceinline__ void load_queries(const Work& work, std::uint8_t* to, int first_query,
                                             int thread) {
#pragma unroll
  for (int i = 0; i < kGroupQueries * kChunks / kGroupThreads; ++i) {
    const int index = i * kGroupThreads + thread;
    const int row = index / kChunks;
    const int query = min(first_query + row, work.tile.num_queries - 1);
    const auto* from = reinterpret_cast<const uint4*>(work.params.args.q + work.element_of(query));
    *reinterpret_cast<uint4*>(to + swizzled(row, index % kChunks)) = from[index % kChunks];
  }
  ptx::fence_async_proxy();
}

__device__ __forceinline__ void issue_scores(float (&scores)[kScores], std::uint32_t queries,
                                             std::uint32_t keys) {
  const std::uint32_t from = ptx::wgmma_descriptor_address(queries);
  const std::uint32_t to = ptx::wgmma_descriptor_address(keys);
#pragma unroll
  for (std::uint32_t k = 0; k < kDim / 16; ++k) {
    ptx::wgmma_m64n128_shared(scores, ptx::wgmma_descriptor(from + 2 * k),
                              ptx::wgmma_descriptor(to + 2 * k), k > 0);
  }
  ptx::wgmma_commit();
}

__device__ __forceinline__ void issue_values(float (&out)[kOut],
                                             const std::uint32_t (&weights)[kScores / 2],
                                             std::uint32_t values) {
  const std::uint32_t rows = ptx::wgmma_descriptor_address(values);
#pragma unroll
  for (int k = 0; k < kStepKeys / 16; ++k) {
    ptx::wgmma_m64n64_rows(out, weights[4 * k], weights[4 * k + 1], weights[4 * k + 2],
                           weights[4 * k + 3],
                           ptx::wgmma_descriptor(rows + k * (16 * kRowBytes / 16)));
  }
  ptx::wgmma_commit();
}

// A thread's two rows: element i of scores belongs to row i / 2 % 2.
struct Rows {
  int position[2];
  float max[2] = {kMinusInfinity, kMinusInfinity};
  float sum[2] = {0.0f, 0.0f};  // of this thread's columns
};

// Scores become weights, in place. Returns what the sums so far are to be multiplied by.
__device__ __forceinline__ float2 weigh(float (&scores)[kScores], Rows& rows) {
  float kept[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = kMinusInfinity;
#pragma unroll
    for (int i = 2 * half; i < kScores; i += 4) top = fmaxf(top, fmaxf(scores[i], scores[i + 1]));
    top = quad_max(top) * kScoreScale;
    const float old = rows.max[half];
    if (top - old > kMaxSlack) rows.max[half] = top;
    kept[half] = rows.max[half] == old ? 1.0f : ptx::exp2_approx(old - rows.max[half]);
    const float base = exponent_base(rows.max[half]);
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 2 * half; i < kScores; i += 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        scores[i + j] = ptx::exp2_approx(fmaf(scores[i + j], kScoreScale, -base));
        sum[j] += scores[i + j];
      }
    }
    rows.sum[half] = fmaf(rows.sum[half], kept[half], sum[0] + sum[1]);
  }
  return {kept[0], kept[1]};
}

__device__ __forceinline__ void mask(float (&scores)[kScores], const Rows& rows, int first_key,
                                     int window) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int newest = rows.position[half] - first_key;
    const int oldest = window > 0 ? newest - window + 1 : 0;
#pragma unroll
    for (int i = 2 * half; i < kScores; i += 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int key = i / 4 * 8 + j;
        if (key < oldest || key > newest) scores[i + j] = kMinusInfinity;
      }
    }
  }
}

// The warpgroups issue their products in turn, so that one's run while another computes weights.
// Barriers 1 to kConsumers are the warpgroups' own.
__device__ __forceinline__ void wait_turn(int group) {
  ptx::named_barrier_sync<2 * kGroupThreads>(1 + kConsumers + group);
}
__device__ __forceinline__ void pass_turn(int group) {
  ptx::named_barrier_arrive<2 * kGroupThreads>(1 + kConsumers + (group + 1) % kConsumers);
}

__device__ __forceinline__ void consume(const Work& work, std::uint8_t* queries,
                                        const std::uint8_t* ring, Barriers& barriers) {
  const AttentionArgs& args = work.params.args;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int lane = thread % kWarp;
  const int first_query = work.tile.first_query + group * kGroupQueries;
  queries += group * kGroupQueries * kRowBytes;
  load_queries(work, queries, first_query, thread);
  ptx::named_barrier_sync<kGroupThreads>(1 + group);  // the warpgroup's queries are there

  Rows rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_query + thread / kWarp * 16 + half * 8 + lane / 4;
    rows.position[half] = work.segment.position +
                          min(query, work.tile.num_queries - 1) / work.params.heads -
                          lane % 4 * 2;  // so that the thread's columns begin at 0
  }
  const std::uint32_t queries_at = ptx::shared_address(queries);
  const std::uint32_t ring_at = ptx::shared_address(ring);
  const int first_step = work.first_step();
  const int num_steps = work.end_step() - first_step;
  const auto is_edge = [&](int step) {
    const int begin = step * kStepKeys;
    return begin + kStepKeys - 1 > work.keys.first_position ||
           (args.window > 0 && begin < work.keys.last_position - args.window + 1);
  };
  float out[kOut] = {};
  float scores[kScores];
  std::uint32_t weights[kScores / 2];
  const auto wait_for = [&](int i) {
    ptx::mbarrier_wait(ptx::shared_address(&barriers.full[i % kStages]), i / kStages % 2);
    return ring_at + i % kStages * kStageBytes;
  };
  const auto mask_edge = [&](int i) {
    if (is_edge(first_step + i)) {
      mask(scores, rows, (first_step + i) * kStepKeys, args.window);
    }
  };
  const auto pack = [&] {
#pragma unroll
    for (int j = 0; j < kScores / 2; ++j) {
      weights[j] = pack_bf16x2(scores[2 * j], scores[2 * j + 1]);
    }
  };

  if (group == kConsumers - 1) pass_turn(group);
  std::uint32_t stage = wait_for(0);
  wait_turn(group);
  ptx::wgmma_fence();
  issue_scores(scores, queries_at, stage);
  if (group < kConsumers - 1 || num_steps > 1) pass_turn(group);
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(scores);
  mask_edge(0);
  weigh(scores, rows);
  pack();
  for (int i = 1; i < num_steps; ++i) {
    const std::uint32_t values = stage + kTileBytes;
    stage = wait_for(i);
    wait_turn(group);
    ptx::wgmma_fence();
    issue_scores(scores, queries_at, stage);
    issue_values(out, weights, values);
    if (group < kConsumers - 1 || i + 1 < num_steps) pass_turn(group);
    ptx::wgmma_wait<1>();
    ptx::wgmma_pin(scores);
    mask_edge(i);
    const float2 kept = weigh(scores, rows);
    ptx::wgmma_wait<0>();
    ptx::wgmma_pin(out);
    if (lane == 0) {
      ptx::mbarrier_arrive(ptx::shared_address(&barriers.empty[(i - 1) % kStages]));
    }
    if (__any_sync(0xffffffffu, kept.x != 1.0f || kept.y != 1.0f)) {
#pragma unroll
      for (int j = 0; j < kOut; ++j) out[j] *= j / 2 % 2 == 0 ? kept.x : kept.y;
    }
    pack();
  }
  ptx::wgmma_fence();
  issue_values(out, weights, stage + kTileBytes);
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(out);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = quad_sum(rows.sum[half]);
    const int query = first_query + thread / kWarp * 16 + half * 8 + lane / 4;
    if (query >= work.tile.num_queries) continue;
    const int head = work.kv_head * work.params.heads + query % work.params.heads;
    const float factor = sink_factor(args.sinks[head], rows.max[half], sum);
    __nv_bfloat16* to = args.out + work.element_of(query) + lane % 4 * 2;
#pragma unroll
    for (int j = 2 * half; j < kOut; j += 4) {
      *reinterpret_cast<std::uint32_t*>(to + j / 4 * 8) =
          pack_bf16x2(out[j] * factor, out[j + 1] * factor);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    attention_prefill_d64_sm90(const __grid_constant__ PrefillParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::uint8_t memory[];
  __shared__ Barriers barriers;
  const QueryTile tile =
      find_query_tile(params.args.step, params.num_tiles - 1 - static_cast<int>(blockIdx.y),
                      params.heads, kTileQueries);
  if (tile.segment < 0) return;
  const SegmentInfo& segment = params.args.step.segments[tile.segment];
  const Work work{params, segment, tile,
                  TileKeys(segment, tile, params.heads, kTileQueries, params.args.window),
                  static_cast<int>(blockIdx.x)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(ptx::shared_address(&barriers.full[i]), kGroupThreads / kWarp);
      ptx::mbarrier_init(ptx::shared_address(&barriers.empty[i]),
                         kConsumers * kGroupThreads / kWarp);
    }
  }
  __syncthreads();  // the barriers are initialised
  const std::uint32_t skew = ptx::shared_address(memory) % kSwizzleBytes;
  std::uint8_t* queries = memory + (skew == 0 ? 0 : kSwizzleBytes - skew);
  std::uint8_t* ring = queries + kQueryBytes;
  if (threadIdx.x / kGroupThreads == kConsumers) {
    ptx::setmaxnreg_decrease<kProducerRegisters>();
    produce(work, ring, barriers);
  } else {
    ptx::setmaxnreg_increase<kConsumerRegisters>();
    consume(work, queries, ring, barriers);
  }
#endif
}

}  // namespace

void attention_prefill_sm90(const AttentionArgs& args, cudaStream_t stream) {
  PrefillParams params{};
  params.args = args;
  params.heads = args.num_heads / args.num_kv_heads;
  params.num_tiles = static_cast<int>(
      tiles_before(args.step.num_rows, args.step.num_segments, params.heads, kTileQueries));
  check(cudaFuncSetAttribute(attention_prefill_d64_sm90,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, kSmemBytes),
        "attention_prefill");
  const dim3 grid(static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(params.num_tiles));
  attention_prefill_d64_sm90<<<grid, kThreads, kSmemBytes, stream>>>(params);
  check_launch("attention_prefill");
}

}  // namespace gptoss::cuda
