// attention over many rows: q bf16 [rows][heads * 64], paged bf16 keys and values (step.h), out
// bf16; 256 operations a query head and visible key. Flash attention on mma.sync, for any compute
// capability from 8.0: a block takes 128 queries (attention_prefill.h), a warp 32 of them; pages
// of keys and values come through a ring of asynchronous copies. Softmax float32; the weights are
// rounded to bf16 and summed as rounded, by a
// product with ones. A row's weights are relative to a maximum that follows the scores only when
// they outgrow it by 2^8, so that sums are seldom rescaled; the sink joins at the end.
#include "cuda/device/softmax.h"
#include "cuda/kernels/attention_decode.h"
#include "cuda/kernels/attention_prefill.h"
#include "cuda/layout.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace gptoss::cuda {
namespace {

constexpr int kDim = static_cast<int>(kHeadDim);
constexpr int kKeys = static_cast<int>(kPageTokens);  // of a step
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMTiles = 2;  // 16 queries each, of a warp
constexpr int kTileQueries = kWarps * kMTiles * 16;
constexpr int kKeyBytes = kDim * 2;
constexpr int kPageHeadBytes = kKeys * kKeyBytes;
constexpr int kStageBytes = 2 * kPageHeadBytes;
constexpr int kStages = 3;
constexpr int kSmemBytes = kStages * kStageBytes;
constexpr int kChunk = 16;
constexpr int kChunks = kKeyBytes / kChunk;
constexpr int kKeyTiles = kKeys / 8;
constexpr int kDimTiles = kDim / 8;

struct PrefillParams {
  AttentionArgs args;
  int heads;      // query heads of a kv head
  int num_tiles;  // the last is taken first: within a segment it sees the most keys
};

// A page's keys and values of one head to a stage, chunk c of key k at chunk c ^ (k % 8). Keys that
// no query of the tile sees become zeros: what stands there might not be a number.
__device__ __forceinline__ void copy_page(const std::uint8_t* from, std::int64_t to_values,
                                          std::uint8_t* stage, int first_visible, int end_visible) {
#pragma unroll
  for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    const int key = index / kChunks;
    const int chunk = (index % kChunks) ^ (key % 8);
    const std::uint32_t bytes = key >= first_visible && key < end_visible ? kChunk : 0;
    std::uint8_t* to = stage + key * kKeyBytes + chunk * kChunk;
    ptx::cp_async_16_zero_fill(to, from + index * kChunk, bytes);
    ptx::cp_async_16_zero_fill(to + kPageHeadBytes, from + to_values + index * kChunk, bytes);
  }
}

struct Softmax {
  float out[kMTiles][kDimTiles][4] = {};
  float max[kMTiles][2];
  float sum[kMTiles][4] = {};  // a fragment whose columns are all the sum of the weights

  __device__ Softmax() {
#pragma unroll
    for (int i = 0; i < kMTiles; ++i) max[i][0] = max[i][1] = kMinusInfinity;
  }
};

__device__ __forceinline__ void score_page(const std::uint32_t (&q)[kMTiles][4][4],
                                           const std::uint8_t* keys, int lane,
                                           float (&scores)[kMTiles][kKeyTiles][4]) {
#pragma unroll
  for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][tile][i] = 0.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t k[4];
      const int chunk = (half * 4 + lane / 8) ^ (lane % 8);
      ptx::ldmatrix_x4(k, keys + (tile * 8 + lane % 8) * kKeyBytes + chunk * kChunk);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        ptx::mma_m16n8k16(scores[m][tile], q[m][2 * half], k[0], k[1]);
        ptx::mma_m16n8k16(scores[m][tile], q[m][2 * half + 1], k[2], k[3]);
      }
    }
  }
}

constexpr std::uint32_t kOnes = 0x3f803f80u;  // bf16

// Scores become weights, as operands of the next product.
__device__ __forceinline__ void weigh(float (&scores)[kKeyTiles][4], float (&max)[2],
                                      float (&sum)[4], float (&out)[kDimTiles][4],
                                      std::uint32_t (&weights)[kKeyTiles][2]) {
  float kept[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = kMinusInfinity;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      top = fmaxf(top, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    top = quad_max(top) * kScoreScale;
    const float old = max[half];
    if (top - old > kMaxSlack) max[half] = top;
    kept[half] = max[half] == old ? 1.0f : ptx::exp2_approx(old - max[half]);
  }
  if (__any_sync(0xffffffffu, kept[0] != 1.0f || kept[1] != 1.0f)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[2 * half] *= kept[half];
      sum[2 * half + 1] *= kept[half];
#pragma unroll
      for (int tile = 0; tile < kDimTiles; ++tile) {
        out[tile][2 * half] *= kept[half];
        out[tile][2 * half + 1] *= kept[half];
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float base = exponent_base(max[half]);
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      const float w0 = ptx::exp2_approx(fmaf(scores[tile][2 * half], kScoreScale, -base));
      const float w1 = ptx::exp2_approx(fmaf(scores[tile][2 * half + 1], kScoreScale, -base));
      weights[tile][half] = pack_bf16x2(w0, w1);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    attention_prefill_d64(const __grid_constant__ PrefillParams params) {
  extern __shared__ __align__(128) std::uint8_t smem[];
  const AttentionArgs& args = params.args;
  const QueryTile tile = find_query_tile(args.step, params.num_tiles - 1 - int(blockIdx.y),
                                         params.heads, kTileQueries);
  if (tile.segment < 0) return;
  const SegmentInfo& segment = args.step.segments[tile.segment];
  const TileKeys keys(segment, tile, params.heads, kTileQueries, args.window);
  const int kv_head = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  const int group = static_cast<int>(args.group);
  __nv_bfloat16* const* pages =
      args.step.pages + segment.page_begin[group] - segment.first_page[group];
  const std::int64_t offset = args.layer_offset + std::int64_t{kv_head} * kPageHeadBytes;
  const std::int64_t to_values = std::int64_t{args.num_kv_heads} * kPageHeadBytes;
  const auto copy = [&](int page) {
    if (page < keys.end_page) {
      copy_page(reinterpret_cast<const std::uint8_t*>(pages[page]) + offset, to_values,
                smem + (page - keys.first_page) % kStages * kStageBytes, keys.first - page * kKeys,
                keys.last_position + 1 - page * kKeys);
    }
    ptx::cp_async_commit();
  };
  for (int i = 0; i < kStages - 1; ++i) copy(keys.first_page + i);

  // Where a query of this lane, one of four, stands; past the last, the last one again.
  const auto query_of = [&](int m, int half) {
    return tile.first_query + warp * kMTiles * 16 + m * 16 + half * 8 + lane / 4;
  };
  const auto element_of = [&](int query) {
    const std::int64_t row = segment.first_row + query / params.heads;
    return (row * args.num_heads + kv_head * params.heads + query % params.heads) * kDim;
  };
  std::uint32_t q[kMTiles][4][4];
  int position[kMTiles][2];
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = min(query_of(m, half), tile.num_queries - 1);
      position[m][half] = segment.position + query / params.heads;
      const __nv_bfloat16* from = args.q + element_of(query) + lane % 4 * 2;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        q[m][k][half] = *reinterpret_cast<const std::uint32_t*>(from + k * 16);
        q[m][k][half + 2] = *reinterpret_cast<const std::uint32_t*>(from + k * 16 + 8);
      }
    }
  }

  Softmax state;
  for (int page = keys.first_page; page < keys.end_page; ++page) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();  // the page is there for all; all have left the stage that is filled next
    copy(page + kStages - 1);
    const std::uint8_t* stage = smem + (page - keys.first_page) % kStages * kStageBytes;
    float scores[kMTiles][kKeyTiles][4];
    score_page(q, stage, lane, scores);
    if (keys.is_edge(page, args.window)) {
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int newest = position[m][i / 2];
          const int oldest = args.window > 0 ? newest - args.window + 1 : 0;
#pragma unroll
          for (int t = 0; t < kKeyTiles; ++t) {
            const int key = page * kKeys + t * 8 + lane % 4 * 2 + i % 2;
            if (key < oldest || key > newest) scores[m][t][i] = kMinusInfinity;
          }
        }
      }
    }
    std::uint32_t weights[kMTiles][kKeyTiles][2];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      weigh(scores[m], state.max[m], state.sum[m], state.out[m], weights[m]);
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
      for (int pair = 0; pair < kDimTiles / 2; ++pair) {
        std::uint32_t v[4];
        const int key = step * 16 + lane % 16;
        const int chunk = (pair * 2 + lane / 16) ^ (key % 8);
        ptx::ldmatrix_x4_trans(v, stage + kPageHeadBytes + key * kKeyBytes + chunk * kChunk);
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          const std::uint32_t a[4] = {weights[m][2 * step][0], weights[m][2 * step][1],
                                      weights[m][2 * step + 1][0], weights[m][2 * step + 1][1]};
          ptx::mma_m16n8k16(state.out[m][2 * pair], a, v[0], v[1]);
          ptx::mma_m16n8k16(state.out[m][2 * pair + 1], a, v[2], v[3]);
          if (pair == 0) ptx::mma_m16n8k16(state.sum[m], a, kOnes, kOnes);
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = query_of(m, half);
      if (query >= tile.num_queries) continue;
      const int head = kv_head * params.heads + query % params.heads;
      const float factor =
          sink_factor(args.sinks[head], state.max[m][half], state.sum[m][2 * half]);
      __nv_bfloat16* to = args.out + element_of(query) + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < kDimTiles; ++t) {
        *reinterpret_cast<std::uint32_t*>(to + t * 8) =
            pack_bf16x2(state.out[m][t][2 * half] * factor, state.out[m][t][2 * half + 1] * factor);
      }
    }
  }
}

}  // namespace

void attention_prefill_portable(const AttentionArgs& args, cudaStream_t stream) {
  PrefillParams params{};
  params.args = args;
  params.heads = args.num_heads / args.num_kv_heads;
  params.num_tiles = static_cast<int>(
      tiles_before(args.step.num_rows, args.step.num_segments, params.heads, kTileQueries));
  check(cudaFuncSetAttribute(attention_prefill_d64, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kSmemBytes),
        "attention_prefill");
  const dim3 grid(static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(params.num_tiles));
  attention_prefill_d64<<<grid, kThreads, kSmemBytes, stream>>>(params);
  check_launch("attention_prefill");
}

void attention_prefill(const AttentionArgs& args, const DeviceInfo& device, cudaStream_t stream) {
  // One segment of several rows has no rows for the other kernel.
  if (args.step.num_segments > 1 || args.step.num_rows == 1) {
    attention_single_rows(args, device, stream);
  }
  if (args.step.num_segments == args.step.num_rows) return;
  if (supports_attention_prefill_sm90(args, device)) {
    attention_prefill_sm90(args, stream);
  } else {
    attention_prefill_portable(args, stream);
  }
}

}  // namespace gptoss::cuda
