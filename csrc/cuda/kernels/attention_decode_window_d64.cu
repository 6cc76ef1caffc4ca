// attention of single-row segments in a large batch where the window is short (attention_decode.h,
// kUnsplitWindow): as attention_decode_d64.cu, but a warp takes a row's whole window for one kv
// head, so that nothing is merged and a ring of copies never runs dry: 256 rows with a window of
// 128 take 21 us, 26 in blocks that merge (H200). 256 bytes a key and kv head, read once for up to
// 16 query heads.
#include "cuda/device/attention_group.h"
#include "cuda/device/attention_keys.h"
#include "cuda/kernels/attention_decode.h"

namespace gptoss::cuda {
namespace {

constexpr int kDim = static_cast<int>(kHeadDim);
constexpr int kWarps = 4;  // independent of each other
constexpr int kThreads = kWarps * kWarp;
constexpr int kStages = 2;
constexpr int kBlocks = 3;                                // of an SM: 192 KB of copies under way
constexpr int kRingBytes = kStages * 2 * kKeyGroupBytes;  // of a warp
constexpr int kSmemBytes = kWarps * kRingBytes;

struct WindowParams {
  AttentionArgs args;
  int heads;         // query heads of a kv head
  int tiles_per_kv;  // warps that share them
};

template <int kHalves>
__global__ void __launch_bounds__(kThreads, kBlocks)
    attention_decode_window_d64(const __grid_constant__ WindowParams params) {
  extern __shared__ __align__(128) std::uint8_t smem[];
  ptx::launch_dependents();
  const AttentionArgs& args = params.args;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const SegmentInfo& segment = args.step.segments[blockIdx.y];
  const int tile = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (segment.num_rows != 1 || tile >= args.num_kv_heads * params.tiles_per_kv) {
    ptx::wait_for_dependencies();  // the kernel must not end before those it depends on
    return;
  }
  const int kv_head = tile / params.tiles_per_kv;
  const int tile_head = tile % params.tiles_per_kv * kHeadTile;
  const int num_heads = min(kHeadTile, params.heads - tile_head);
  const int first_head = kv_head * params.heads + tile_head;

  const int group = static_cast<int>(args.group);
  const std::int64_t head_bytes = kPageTokens * kKeyBytes;
  const Keys keys{args.step.pages + segment.page_begin[group] - segment.first_page[group],
                  args.layer_offset + kv_head * head_bytes,
                  args.num_kv_heads * head_bytes,
                  max(0, segment.position - args.window + 1),
                  segment.position + 1,
                  segment.position};
  const int begin = keys.first / kKeyGroup * kKeyGroup;
  const int num_groups = (keys.end - begin + kKeyGroup - 1) / kKeyGroup;
  const auto group_begin = [&](int i) { return begin + i * kKeyGroup; };
  const std::int64_t of_tile =
      (static_cast<std::int64_t>(segment.first_row) * args.num_heads + first_head) * kDim;
  const auto state =
      attend_groups<kHalves, kStages>(keys, num_groups, group_begin, keys.end, args.q + of_tile,
                                      num_heads, smem + warp * kRingBytes, lane);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int head = half * 8 + lane / 4;
    const float sum = quad_sum(state.sum[half]);
    if (head >= num_heads) continue;
    const float factor = sink_factor(args.sinks[first_head + head], state.max[half], sum);
    __nv_bfloat16* to = args.out + of_tile + head * kDim + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < kDimTiles; ++t) {
      *reinterpret_cast<std::uint32_t*>(to + t * 8) =
          pack_bf16x2(state.out[t][2 * half] * factor, state.out[t][2 * half + 1] * factor);
    }
  }
}

template <int kHalves>
void launch(const WindowParams& params, dim3 grid, Dependence dependence, cudaStream_t stream) {
  const auto kernel = attention_decode_window_d64<kHalves>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmemBytes),
        "attention_decode");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSmemBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependence == Dependence::kProgrammatic ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, params), "attention_decode");
}

}  // namespace

void attention_single_rows_window(const AttentionArgs& args, Dependence dependence,
                                  cudaStream_t stream) {
  const int heads = args.num_heads / args.num_kv_heads;
  const int tiles_per_kv = (heads + kHeadTile - 1) / kHeadTile;
  const WindowParams params{args, heads, tiles_per_kv};
  const int tiles = args.num_kv_heads * tiles_per_kv;
  const dim3 grid(static_cast<unsigned>((tiles + kWarps - 1) / kWarps),
                  static_cast<unsigned>(args.step.num_segments));
  if (heads <= 8) {
    launch<1>(params, grid, dependence, stream);
  } else {
    launch<2>(params, grid, dependence, stream);
  }
}

}  // namespace gptoss::cuda
