// attention, one row at a time: q bf16 [rows][heads * 64], paged bf16 keys and values (step.h), out
// bf16. Reads 256 bytes a key and kv head once for up to 16 query heads: bandwidth, or latency when
// the context is short. A block takes one piece of a row's keys for one kv head, a warp every
// fourth group of 32 keys through its own ring of asynchronous copies; products on mma.sync,
// softmax float32, weights rounded to bf16 and summed as rounded. Warps merge in shared memory,
// pieces across a cluster (9.0 and later, short contexts) or in the block that arrives last, in
// fixed order after the sink.
#include "cuda/device/softmax.h"
#include "cuda/kernels/attention_decode.h"
#include "cuda/layout.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace gptoss::cuda {
namespace {

constexpr int kDim = static_cast<int>(kHeadDim);
constexpr int kTokensOfPage = static_cast<int>(kPageTokens);
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kKeyBytes = kDim * 2;
constexpr int kGroupBytes = kKeyGroup * kKeyBytes;  // of keys; as many of values
constexpr int kStageBytes = 2 * kGroupBytes;        // of a warp
constexpr int kChunk = 16;                          // bytes of an asynchronous copy
constexpr int kChunks = kKeyBytes / kChunk;
#ifndef MAXSTAGES
#define MAXSTAGES 3
#endif
constexpr int kMaxStages = MAXSTAGES;
constexpr int kHeadTile = 16;  // query heads a block may take: rows of an mma
constexpr int kKeyTiles = kKeyGroup / 8;
constexpr int kDimTiles = kDim / 8;
// Rows of the merge in shared memory stand 8 banks apart: 8-byte stores of four rows do not meet.
constexpr int kMergeStride = kDim + 8;
static_assert((kHeadTile * kMergeStride + 2 * kHeadTile) * sizeof(float) <= kStageBytes);

// Workspace: a slot for every (unit, piece) of a launch, then a counter for every unit's tile.
constexpr int kSlots = kSmallRows * kMaxPieces;

enum class Units { kRows, kSingleRowSegments };
// Of pieces: all through global memory, or up to kClusterPieces of them across a cluster.
enum class Merging { kGlobal, kCluster };

struct DecodeParams {
  AttentionArgs args;
  Units units;
  int first_unit;
  int min_piece;
  int slots_per_unit;    // the grid's pieces
  int heads;             // query heads of a kv head
  int tiles_per_kv;      // blocks that share them
  float* partial_out;    // [slots][num_heads][64], before division
  float2* partial_norm;  // [slots][num_heads]: max, sum
  unsigned* arrivals;    // [units][num_kv_heads * tiles_per_kv]
};

struct Unit {
  int row;  // -1: nothing to do
  int position;
  int segment;
};

__device__ Unit find_unit(const DecodeParams& params) {
  const StepView& step = params.args.step;
  const int index = params.first_unit + static_cast<int>(blockIdx.z);
  if (params.units == Units::kRows) {
    const int position = step.positions[index];
    return {position < 0 ? -1 : index, position, step.segment_of[index]};
  }
  const SegmentInfo& segment = step.segments[index];
  return {segment.num_rows == 1 ? segment.first_row : -1, segment.position, index};
}

// The keys of one piece of a row, as a warp copies them.
struct Keys {
  __nv_bfloat16* const* pages;  // of page 0
  std::int64_t offset;          // bytes from a page to the kv head's keys
  std::int64_t to_values;       // bytes from keys to values
  int first;                    // keys that the row sees
  int end;
  int old_end;  // keys before this were written by earlier steps

  __device__ const std::uint8_t* group(int begin) const {
    const auto* page = reinterpret_cast<const std::uint8_t*>(pages[begin / kTokensOfPage]);
    return page + offset + begin % kTokensOfPage * kKeyBytes;
  }
};

enum class Part { kOld, kNew, kAll };

// Part of a group's keys and values to a stage, chunk c of key k at chunk c ^ (k % 8). Keys out of
// sight become zeros: their weight is zero, but what stands in the page might not be a number.
template <Part kPart>
__device__ __forceinline__ void copy_group(const Keys& keys, int begin, std::uint8_t* stage,
                                           int lane) {
  const std::uint8_t* from = keys.group(begin) + lane * kChunk;
#pragma unroll
  for (int i = 0; i < kKeyGroup * kChunks / kWarp; ++i) {
    const int in_group = i * (kWarp / kChunks) + lane / kChunks;
    const int key = begin + in_group;
    const bool visible = key >= keys.first && key < keys.end;
    const bool fresh = visible && key >= keys.old_end;
    if (kPart == Part::kOld && fresh || kPart == Part::kNew && !fresh) continue;
    const int chunk = (lane % kChunks) ^ (in_group % 8);
    std::uint8_t* to = stage + in_group * kKeyBytes + chunk * kChunk;
    const std::uint8_t* source = from + i * kWarp * kChunk;
    ptx::cp_async_16_zero_fill(to, source, visible ? kChunk : 0);
    ptx::cp_async_16_zero_fill(to + kGroupBytes, source + keys.to_values, visible ? kChunk : 0);
  }
}

// A warp's share of the softmax: kHalves of the 16 rows of a fragment are in use.
template <int kHalves>
struct State {
  float out[kDimTiles][4] = {};
  float max[kHalves];
  float sum[kHalves] = {};  // of this lane's columns

  __device__ State() {
    for (float& value : max) value = kMinusInfinity;
  }
};

template <int kHalves>
__device__ __forceinline__ void load_query(const DecodeParams& params, int row, int first_head,
                                           int num_heads, int lane, std::uint32_t (&q)[4][4]) {
  const AttentionArgs& args = params.args;
  const __nv_bfloat16* from =
      args.q + (static_cast<std::int64_t>(row) * args.num_heads + first_head) * kDim;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int head = lane / 4 + i % 2 * 8;
      const int dim = k * 16 + i / 2 * 8 + lane % 4 * 2;
      const bool there = i % 2 < kHalves && head < num_heads;
      q[k][i] = there ? *reinterpret_cast<const std::uint32_t*>(from + head * kDim + dim) : 0u;
    }
  }
}

// One group of keys, in a stage, of which the row sees [first, end).
template <int kHalves>
__device__ __forceinline__ void attend_group(const std::uint32_t (&q)[4][4],
                                             const std::uint8_t* stage, int begin, int first,
                                             int end, int lane, State<kHalves>& state) {
  float scores[kKeyTiles][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      std::uint32_t k[4];
      const int chunk = (half * 4 + lane / 8) ^ (lane % 8);
      ptx::ldmatrix_x4(k, stage + (tile * 8 + lane % 8) * kKeyBytes + chunk * kChunk);
      ptx::mma_m16n8k16(scores[tile], q[2 * half], k[0], k[1]);
      ptx::mma_m16n8k16(scores[tile], q[2 * half + 1], k[2], k[3]);
    }
  }
  if (begin < first || begin + kKeyGroup > end) {
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = begin + tile * 8 + lane % 4 * 2 + i % 2;
        if (key < first || key >= end) scores[tile][i] = kMinusInfinity;
      }
    }
  }
  std::uint32_t weights[kKeyTiles][2] = {};
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    float top = kMinusInfinity;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      top = fmaxf(top, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    const float old_max = state.max[half];
    state.max[half] = fmaxf(old_max, quad_max(top) * kScoreScale);
    const float base = exponent_base(state.max[half]);
    const float kept = ptx::exp2_approx(old_max - base);
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      const float w0 = ptx::exp2_approx(fmaf(scores[tile][2 * half], kScoreScale, -base));
      const float w1 = ptx::exp2_approx(fmaf(scores[tile][2 * half + 1], kScoreScale, -base));
      weights[tile][half] = pack_bf16x2(w0, w1);
      sum += __uint_as_float(weights[tile][half] << 16) +
             __uint_as_float(weights[tile][half] & 0xffff0000u);
    }
    state.sum[half] = state.sum[half] * kept + sum;
#pragma unroll
    for (int tile = 0; tile < kDimTiles; ++tile) {
      state.out[tile][2 * half] *= kept;
      state.out[tile][2 * half + 1] *= kept;
    }
  }
  const std::uint8_t* values = stage + kGroupBytes;
#pragma unroll
  for (int step = 0; step < kKeyGroup / 16; ++step) {
    const std::uint32_t a[4] = {weights[2 * step][0], weights[2 * step][1],
                                weights[2 * step + 1][0], weights[2 * step + 1][1]};
#pragma unroll
    for (int pair = 0; pair < kDimTiles / 2; ++pair) {
      std::uint32_t v[4];
      const int key = step * 16 + lane % 16;
      const int chunk = (pair * 2 + lane / 16) ^ (key % 8);
      ptx::ldmatrix_x4_trans(v, values + key * kKeyBytes + chunk * kChunk);
      ptx::mma_m16n8k16(state.out[2 * pair], a, v[0], v[1]);
      ptx::mma_m16n8k16(state.out[2 * pair + 1], a, v[2], v[3]);
    }
  }
}

// A row's softmax before division, four dims of it.
struct Partial {
  float4 out;
  float max;
  float sum;
};

__device__ __forceinline__ void scale_add(float4& to, float factor, const float4& from) {
  to.x = fmaf(factor, from.x, to.x);
  to.y = fmaf(factor, from.y, to.y);
  to.z = fmaf(factor, from.z, to.z);
  to.w = fmaf(factor, from.w, to.w);
}

// Four dims from `dim` on, times `factor`.
__device__ __forceinline__ void store_result(const DecodeParams& params, int row, int head, int dim,
                                             const float4& out, float factor) {
  const AttentionArgs& args = params.args;
  const uint2 packed{pack_bf16x2(out.x * factor, out.y * factor),
                     pack_bf16x2(out.z * factor, out.w * factor)};
  const std::int64_t at = (static_cast<std::int64_t>(row) * args.num_heads + head) * kDim + dim;
  *reinterpret_cast<uint2*>(args.out + at) = packed;
}

// The four warps' states, written to their own stages, become one: row `row` of the tile.
__device__ __forceinline__ Partial merge_warps(const std::uint8_t* smem, int warp_bytes, int row,
                                               int dim) {
  const auto area = [&](int warp) {
    return reinterpret_cast<const float*>(smem + warp * warp_bytes);
  };
  const auto norm = [&](int warp) {
    return reinterpret_cast<const float2*>(area(warp) + kHeadTile * kMergeStride)[row];
  };
  Partial merged{{0, 0, 0, 0}, kMinusInfinity, 0.0f};
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) merged.max = fmaxf(merged.max, norm(warp).x);
  const float base = exponent_base(merged.max);
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const float factor = ptx::exp2_approx(norm(warp).x - base);
    merged.sum = fmaf(factor, norm(warp).y, merged.sum);
    scale_add(merged.out, factor,
              *reinterpret_cast<const float4*>(area(warp) + row * kMergeStride + dim));
  }
  return merged;
}

// All pieces of a row's head, after the sink; the same bits as merge_cluster. Each half of a warp
// does its own row; lane p of the warp holds piece p's norm of both rows.
__device__ __forceinline__ void merge_pieces(const DecodeParams& params, int row, int head,
                                             int other_head, int dim, int num_pieces, int lane) {
  const AttentionArgs& args = params.args;
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.z) * params.slots_per_unit;
  const auto norm_of = [&](int of_head) {
    return lane < num_pieces
               ? __ldcg(params.partial_norm + (slot + lane) * args.num_heads + of_head)
               : float2{kMinusInfinity, 0.0f};
  };
  const float2 lower = norm_of(lane < 16 ? head : other_head);  // row of lanes 0 to 15
  const float2 upper = norm_of(lane < 16 ? other_head : head);
  const auto base_of = [&](float2 norm, int of_head) {
    float max = norm.x;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, i));
    return exponent_base(fmaxf(sink_exponent(args.sinks[of_head]), max));
  };
  const float lower_base = base_of(lower, lane < 16 ? head : other_head);
  const float upper_base = base_of(upper, lane < 16 ? other_head : head);
  const float lower_weight = ptx::exp2_approx(lower.x - lower_base);
  const float upper_weight = ptx::exp2_approx(upper.x - upper_base);
  float sum =
      ptx::exp2_approx(sink_exponent(args.sinks[head]) - (lane < 16 ? lower_base : upper_base));
  const auto* from = reinterpret_cast<const float4*>(params.partial_out +
                                                     (slot * args.num_heads + head) * kDim + dim);
  const std::int64_t stride = static_cast<std::int64_t>(args.num_heads) * kDim / 4;
  float4 out{0, 0, 0, 0};
#pragma unroll 4
  for (int piece = 0; piece < num_pieces; ++piece) {
    const auto from_piece = [&](float low, float high) {
      low = __shfl_sync(0xffffffffu, low, piece);
      high = __shfl_sync(0xffffffffu, high, piece);
      return lane < 16 ? low : high;
    };
    const float factor = from_piece(lower_weight, upper_weight);
    sum = fmaf(factor, from_piece(lower.y, upper.y), sum);
    scale_add(out, factor, __ldcg(from + piece * stride));
  }
  store_result(params, row, head, dim, out, 1.0f / sum);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// What a block shows to its cluster.
struct PieceResult {
  float out[kHeadTile][kDim];
  float2 norm[kHeadTile];  // max, sum
};

// Every num_pieces-th row of the tile, one half of a warp each, from all pieces after the sink.
__device__ __forceinline__ void merge_cluster(const DecodeParams& params, const PieceResult& mine,
                                              int row, int first_head, int num_heads, int piece,
                                              int num_pieces) {
  const int dim = static_cast<int>(threadIdx.x) % 16 * 4;
  for (int i = piece + static_cast<int>(threadIdx.x) / 16 * num_pieces; i < num_heads;
       i += kThreads / 16 * num_pieces) {
    float2 norms[kClusterPieces];
    float4 outs[kClusterPieces];
#pragma unroll
    for (int p = 0; p < kClusterPieces; ++p) {
      if (p >= num_pieces) break;
      const PieceResult* other = ptx::map_to_rank(&mine, static_cast<unsigned>(p));
      norms[p] = other->norm[i];
      outs[p] = *reinterpret_cast<const float4*>(&other->out[i][dim]);
    }
    const float sink = sink_exponent(params.args.sinks[first_head + i]);
    float max = sink;
#pragma unroll
    for (int p = 0; p < kClusterPieces; ++p) {
      if (p < num_pieces) max = fmaxf(max, norms[p].x);
    }
    const float base = exponent_base(max);
    float sum = ptx::exp2_approx(sink - base);
    float4 out{0, 0, 0, 0};
#pragma unroll
    for (int p = 0; p < kClusterPieces; ++p) {
      if (p >= num_pieces) break;
      const float factor = ptx::exp2_approx(norms[p].x - base);
      sum = fmaf(factor, norms[p].y, sum);
      scale_add(out, factor, outs[p]);
    }
    store_result(params, row, first_head + i, dim, out, 1.0f / sum);
  }
}
#endif

// Blocks of an SM that the registers must allow: as many as shared memory does.
constexpr int min_blocks(int stages) {
  return stages == 1 ? 4 : stages == 2 ? 3 : 2;
}

template <int kHalves, int kStages, Merging kMerging>
__global__ void __launch_bounds__(kThreads, min_blocks(kStages))
    attention_decode_d64(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(128) std::uint8_t smem[];
  ptx::launch_dependents();
  const AttentionArgs& args = params.args;
  const Unit unit = find_unit(params);
  if (unit.row < 0) return;
  const int piece_size = piece_keys(unit.position, args.window, params.min_piece);
  const int first = args.window > 0 ? max(0, unit.position - args.window + 1) : 0;
  const int first_piece = first / piece_size;
  const int num_pieces = unit.position / piece_size - first_piece + 1;
  const int piece = static_cast<int>(blockIdx.x);
  if (piece >= num_pieces) return;

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int kv_head = static_cast<int>(blockIdx.y) / params.tiles_per_kv;
  const int tile_head = static_cast<int>(blockIdx.y) % params.tiles_per_kv * kHeadTile;
  const int first_head = kv_head * params.heads + tile_head;
  const int num_heads = min(kHeadTile, params.heads - tile_head);

  const SegmentInfo& segment = args.step.segments[unit.segment];
  const int group = static_cast<int>(args.group);
  const std::int64_t head_bytes = kPageTokens * kKeyBytes;
  const Keys keys{args.step.pages + segment.page_begin[group] - segment.first_page[group],
                  args.layer_offset + kv_head * head_bytes,
                  args.num_kv_heads * head_bytes,
                  first,
                  unit.position + 1,
                  segment.position};
  const int begin = max(first / kKeyGroup * kKeyGroup, (first_piece + piece) * piece_size);
  const int end = piece + 1 == num_pieces ? keys.end : (first_piece + piece + 1) * piece_size;
  const int num_groups = (end - begin + kKeyGroup - 1) / kKeyGroup;
  const int my_groups = warp < num_groups ? (num_groups - warp + kWarps - 1) / kWarps : 0;
  std::uint8_t* ring = smem + warp * kStages * kStageBytes;
  const auto group_begin = [&](int i) { return begin + (warp + i * kWarps) * kKeyGroup; };

#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (i < my_groups) copy_group<Part::kOld>(keys, group_begin(i), ring + i * kStageBytes, lane);
    ptx::cp_async_commit();
  }
  ptx::wait_for_dependencies();
  std::uint32_t q[4][4];
  load_query<kHalves>(params, unit.row, first_head, num_heads, lane, q);
  const int staged_end = group_begin(min(kStages, my_groups) - 1) + kKeyGroup;
  if (my_groups > 0 && staged_end > keys.old_end) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      if (i < my_groups) copy_group<Part::kNew>(keys, group_begin(i), ring + i * kStageBytes, lane);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }

  State<kHalves> state;
  for (int i = 0; i < my_groups; ++i) {
    ptx::cp_async_wait<kStages - 1>();
    __syncwarp();  // the other lanes' copies
    std::uint8_t* stage = ring + i % kStages * kStageBytes;
    attend_group<kHalves>(q, stage, group_begin(i), keys.first, end, lane, state);
    __syncwarp();  // all have read the stage before it is filled again
    if (i + kStages < my_groups)
      copy_group<Part::kAll>(keys, group_begin(i + kStages), stage, lane);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<0>();
  __syncwarp();

  auto* mine = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int row = half * 8 + lane / 4;
#pragma unroll
    for (int tile = 0; tile < kDimTiles; ++tile) {
      *reinterpret_cast<float2*>(mine + row * kMergeStride + tile * 8 + lane % 4 * 2) =
          float2{state.out[tile][2 * half], state.out[tile][2 * half + 1]};
    }
    const float sum = quad_sum(state.sum[half]);
    if (lane % 4 == 0) {
      reinterpret_cast<float2*>(mine + kHeadTile * kMergeStride)[row] =
          float2{state.max[half], sum};
    }
  }
  __syncthreads();  // every warp's state is in shared memory

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ PieceResult result;
#endif
  [[maybe_unused]] const bool in_cluster =
      kMerging == Merging::kCluster && num_pieces <= kClusterPieces;
  const int dim = static_cast<int>(threadIdx.x) % 16 * 4;
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.z) * params.slots_per_unit + piece;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int row = half * 8 + static_cast<int>(threadIdx.x) / 16;
    if (row >= num_heads) continue;
    const int head = first_head + row;
    const Partial merged = merge_warps(smem, kStages * kStageBytes, row, dim);
    if (num_pieces == 1) {
      store_result(params, unit.row, head, dim, merged.out,
                   sink_factor(args.sinks[head], merged.max, merged.sum));
      continue;
    }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (in_cluster) {
      *reinterpret_cast<float4*>(&result.out[row][dim]) = merged.out;
      if (dim == 0) result.norm[row] = float2{merged.max, merged.sum};
      continue;
    }
#endif
    const std::int64_t at = slot * args.num_heads + head;
    *reinterpret_cast<float4*>(params.partial_out + at * kDim + dim) = merged.out;
    if (dim == 0) params.partial_norm[at] = float2{merged.max, merged.sum};
  }
  if (num_pieces == 1) return;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (in_cluster) {
    ptx::cluster_arrive();  // the pieces' results are in shared memory
    ptx::cluster_wait();
    merge_cluster(params, result, unit.row, first_head, num_heads, piece, num_pieces);
    ptx::cluster_arrive();  // no block ends while another reads its result
    ptx::cluster_wait();
    return;
  }
#endif

  __shared__ bool last;
  __syncthreads();  // the block's partial result is written before it is counted
  if (threadIdx.x == 0) {
    unsigned* arrivals = params.arrivals + blockIdx.z * gridDim.y + blockIdx.y;
    __threadfence();  // the partial result before the arrival
    last = atomicAdd(arrivals, 1u) == static_cast<unsigned>(num_pieces) - 1;
    if (last) *arrivals = 0;  // for the next launch
    __threadfence();          // the others' arrivals before their partial results
  }
  __syncthreads();
  if (!last) return;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    // The warp's two rows; a row past the tile's last repeats it, so that no lane is missing.
    const int row = min(half * 8 + static_cast<int>(threadIdx.x) / 16, num_heads - 1);
    const int other = min(half * 8 + static_cast<int>(threadIdx.x ^ 16u) / 16, num_heads - 1);
    merge_pieces(params, unit.row, first_head + row, first_head + other, dim, num_pieces, lane);
  }
}

struct Launch {
  dim3 grid;
  int cluster;  // blocks along x; 1: none
  Dependence dependence;
  cudaStream_t stream;
};

template <int kHalves, int kStages, Merging kMerging>
void launch(const DecodeParams& params, const Launch& how) {
  const auto kernel = attention_decode_d64<kHalves, kStages, kMerging>;
  constexpr int kSmem = kWarps * kStages * kStageBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem),
        "attention_decode");
  cudaLaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (how.dependence == Dependence::kProgrammatic) {
    attributes[num_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[num_attributes++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cluster > 1) {
    attributes[num_attributes].id = cudaLaunchAttributeClusterDimension;
    attributes[num_attributes++].val.clusterDim = {static_cast<unsigned>(how.cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSmem;
  config.stream = how.stream;
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  check(cudaLaunchKernelEx(&config, kernel, params), "attention_decode");
}

template <int kHalves, int kStages>
void launch_for(const DecodeParams& params, const Launch& how) {
  if (how.cluster > 1) return launch<kHalves, kStages, Merging::kCluster>(params, how);
  launch<kHalves, kStages, Merging::kGlobal>(params, how);
}

template <int kHalves>
void launch_for(const DecodeParams& params, int groups, const Launch& how) {
  if (groups <= kWarps) return launch_for<kHalves, 1>(params, how);
  if (groups <= 2 * kWarps) return launch_for<kHalves, 2>(params, how);
  launch_for<kHalves, kMaxStages>(params, how);
}

// As many units a launch as the workspace has slots for.
void run(const AttentionArgs& args, Units units, int num_units, int min_piece, Merging merging,
         Dependence dependence, cudaStream_t stream) {
  DecodeParams params{};
  params.args = args;
  params.units = units;
  params.min_piece = min_piece;
  const int max_position = args.step.max_position;
  const int pieces = max_pieces(max_position, args.window, min_piece);
  int cluster = 1;
  if (merging == Merging::kCluster) {
    while (cluster < std::min(pieces, kClusterPieces)) cluster *= 2;
  }
  params.slots_per_unit = (pieces + cluster - 1) / cluster * cluster;
  params.heads = args.num_heads / args.num_kv_heads;
  params.tiles_per_kv = (params.heads + kHeadTile - 1) / kHeadTile;
  params.partial_out = static_cast<float*>(args.workspace);
  params.partial_norm =
      reinterpret_cast<float2*>(params.partial_out + std::int64_t{kSlots} * args.num_heads * kDim);
  params.arrivals =
      reinterpret_cast<unsigned*>(params.partial_norm + std::int64_t{kSlots} * args.num_heads);
  // The rings are as deep as the longest piece; a whole window's fifth group waits for a stage.
  const bool whole = args.window > 0 && args.window <= kUnsplitWindow;
  const int keys =
      whole ? args.window
            : std::min(piece_keys(max_position, args.window, min_piece), max_position + 1);
  const int groups = (keys + kKeyGroup - 1) / kKeyGroup;
  const int most = kSlots / params.slots_per_unit;
  for (; params.first_unit < num_units; params.first_unit += most) {
    const dim3 grid(static_cast<unsigned>(params.slots_per_unit),
                    static_cast<unsigned>(args.num_kv_heads * params.tiles_per_kv),
                    static_cast<unsigned>(std::min(most, num_units - params.first_unit)));
    const Launch how{grid, cluster, dependence, stream};
    if (params.heads <= 8) {
      launch_for<1>(params, groups, how);
    } else {
      launch_for<2>(params, groups, how);
    }
  }
}

}  // namespace

std::size_t attention_workspace_bytes(std::int64_t num_heads) {
  return static_cast<std::size_t>(kSlots) * static_cast<std::size_t>(num_heads) *
         (kDim * sizeof(float) + sizeof(float2) + sizeof(unsigned));
}

void attention_decode(const AttentionArgs& args, const DeviceInfo& device, Dependence dependence,
                      cudaStream_t stream) {
  // H200, one row: 3.6 us across a cluster and 4.8 through memory at 512 keys, but 29 and 22 at
  // 32,768, where clusters fill the multiprocessors unevenly; the same with many rows.
  const bool clustered = device.compute_capability >= 90 && args.step.num_rows <= kClusterRows &&
                         args.step.max_position < kClusterPositions;
  const Merging merging = clustered ? Merging::kCluster : Merging::kGlobal;
  run(args, Units::kRows, args.step.num_rows, kSmallPiece, merging, dependence, stream);
}

void attention_single_rows(const AttentionArgs& args, cudaStream_t stream) {
  run(args, Units::kSingleRowSegments, args.step.num_segments, kLargePiece, Merging::kGlobal,
      Dependence::kFull, stream);
}

}  // namespace gptoss::cuda
