// attention, one row at a time: q bf16 [rows][heads * 64], paged bf16 keys and values (step.h), out
// bf16. Reads 256 bytes a key and kv head once for up to 16 query heads: bandwidth, or latency when
// the context is short. A block takes one piece of a row's keys for one kv head, a warp every
// fourth group of 32 keys through its own ring of asynchronous copies; products on mma.sync,
// softmax float32, weights rounded to bf16 and summed as rounded. Warps merge in shared memory,
// pieces across a cluster (9.0 and later, short contexts) or in the block that arrives last, in
// fixed order after the sink.
#include <algorithm>

#include "cuda/device/attention_group.h"
#include "cuda/device/attention_keys.h"
#include "cuda/device/attention_merge.h"
#include "cuda/kernels/attention_decode.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/atomic.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kDim = static_cast<int>(kHeadDim);
constexpr int kWarps = kMergeWarps;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStageBytes = 2 * kKeyGroupBytes;  // of a warp
constexpr int kMaxStages = 3;
static_assert(kMergeBytes <= kStageBytes);

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
  if (unit.row < 0) {
    // There may be no unit at all: the kernel must not end before those it depends on.
    if (params.units == Units::kSingleRowSegments) ptx::wait_for_dependencies();
    return;
  }
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
  const HeadTile tile{args, unit.row, kv_head * params.heads + tile_head,
                      min(kHeadTile, params.heads - tile_head)};

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

  const std::int64_t of_row = static_cast<std::int64_t>(unit.row) * args.num_heads;
  const auto state = attend_groups<kHalves, kStages>(keys, my_groups, group_begin, end,
                                                     args.q + (of_row + tile.first_head) * kDim,
                                                     tile.num_heads, ring, lane);
  put_state(state, ring, lane);
  __syncthreads();  // every warp's state is in shared memory

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ PieceResult result;
#endif
  [[maybe_unused]] const bool in_cluster =
      kMerging == Merging::kCluster && num_pieces <= kClusterPieces;
  const int dim = static_cast<int>(threadIdx.x) % 16 * 4;
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.z) * params.slots_per_unit;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int row = half * 8 + static_cast<int>(threadIdx.x) / 16;
    if (row >= tile.num_heads) continue;
    const Partial merged = merge_warps(smem, kStages * kStageBytes, row, dim);
    if (num_pieces == 1) {
      tile.store(row, dim, merged.out,
                 sink_factor(args.sinks[tile.first_head + row], merged.max, merged.sum));
      continue;
    }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (in_cluster) {
      *reinterpret_cast<float4*>(&result.out[row][dim]) = merged.out;
      if (dim == 0) result.norm[row] = float2{merged.max, merged.sum};
      continue;
    }
#endif
    const std::int64_t at = (slot + piece) * args.num_heads + tile.first_head + row;
    *reinterpret_cast<float4*>(params.partial_out + at * kDim + dim) = merged.out;
    if (dim == 0) params.partial_norm[at] = float2{merged.max, merged.sum};
  }
  if (num_pieces == 1) return;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (in_cluster) {
    ptx::cluster_arrive();  // the pieces' results are in shared memory
    ptx::cluster_wait();
    merge_cluster(tile, result, piece, num_pieces);
    ptx::cluster_arrive();  // no block ends while another reads its result
    ptx::cluster_wait();
    return;
  }
#endif

  __shared__ bool last;
  __syncthreads();  // the block's partial result is written before it is counted
  if (threadIdx.x == 0) {
    unsigned* arrivals = params.arrivals + blockIdx.z * gridDim.y + blockIdx.y;
    // The partial result before the arrival, the others' arrivals before their partial results.
    last = ptx::atomic_add_acq_rel(arrivals, 1) == static_cast<unsigned>(num_pieces) - 1;
    if (last) *arrivals = 0;  // for the next launch
  }
  __syncthreads();
  if (!last) return;
  const PieceSlots slots{params.partial_out + slot * args.num_heads * kDim,
                         params.partial_norm + slot * args.num_heads};
  merge_pieces(tile, slots, num_pieces, smem, kWarps * kStages * kStageBytes);
}

struct Launch {
  dim3 grid;
  int cluster;  // blocks along x; 1: none
  int stages;
  Dependence dependence;
  cudaStream_t stream;
};

template <int kHalves, int kStages, Merging kMerging>
void launch(const DecodeParams& params, const Launch& how) {
  const auto kernel = attention_decode_d64<kHalves, kStages, kMerging>;
  constexpr int kSmem = kWarps * kStages * kStageBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem),
        "attention_decode");
  // As the small regime's other kernels (launch.h), so that blocks of both fit an SM together.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
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
void launch_stages(const DecodeParams& params, const Launch& how) {
  if (how.stages == 1) return launch_for<kHalves, 1>(params, how);
  if (how.stages == 2) return launch_for<kHalves, 2>(params, how);
  launch_for<kHalves, kMaxStages>(params, how);
}

// As deep as the longest piece has groups, where a block may have that much shared memory.
int ring_stages(int groups, const DeviceInfo& device) {
  constexpr std::size_t kOther =
      sizeof(PieceResult) + kMaxPieces * kMergeWarps * 2 * sizeof(float2);
  const int stages = std::clamp((groups + kWarps - 1) / kWarps, 1, kMaxStages);
  return device.smem_per_block < kOther + kMaxStages * kWarps * kStageBytes ? std::min(stages, 2)
                                                                            : stages;
}

// As many units a launch as the workspace has slots for.
void run(const AttentionArgs& args, const DeviceInfo& device, Units units, int num_units,
         int min_piece, Merging merging, Dependence dependence, cudaStream_t stream) {
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
  // A whole window's fifth group waits for a stage.
  const bool whole = args.window > 0 && args.window <= kUnsplitWindow;
  const int keys =
      whole ? args.window
            : std::min(piece_keys(max_position, args.window, min_piece), max_position + 1);
  const int stages = ring_stages((keys + kKeyGroup - 1) / kKeyGroup, device);
  const int most = kSlots / params.slots_per_unit;
  for (; params.first_unit < num_units; params.first_unit += most) {
    const dim3 grid(static_cast<unsigned>(params.slots_per_unit),
                    static_cast<unsigned>(args.num_kv_heads * params.tiles_per_kv),
                    static_cast<unsigned>(std::min(most, num_units - params.first_unit)));
    const Launch how{grid, cluster, stages, dependence, stream};
    if (params.heads <= 8) {
      launch_stages<1>(params, how);
    } else {
      launch_stages<2>(params, how);
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
  run(args, device, Units::kRows, args.step.num_rows, kSmallPiece, merging, dependence, stream);
}

void attention_single_rows(const AttentionArgs& args, const DeviceInfo& device,
                           cudaStream_t stream) {
  const Dependence dependence =
      device.compute_capability >= 90 ? Dependence::kProgrammatic : Dependence::kFull;
  if (args.window > 0 && args.window <= kUnsplitWindow) {
    return attention_single_rows_window(args, dependence, stream);
  }
  run(args, device, Units::kSingleRowSegments, args.step.num_segments, kLargePiece,
      Merging::kGlobal, dependence, stream);
}

}  // namespace gptoss::cuda
