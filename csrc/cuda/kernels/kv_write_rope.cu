// kv_write_rope: rotates q and k of every row and rounds q, k and v to bf16: q to q_out, k and v to
// the row's slot of its page. qkv [rows][heads + 2 kv_heads][4 tiles of 16] in RowOrder::kRope, so
// that a thread's 16 consecutive channels are 8 rotary pairs. Reads each element once, writes 2
// bytes for it; positions' angles come from cache.
#include "cuda/device/softmax.h"
#include "cuda/kernels/attention.h"
#include "cuda/launch.h"
#include "cuda/layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDim = static_cast<int>(kHeadDim);
constexpr int kTilesOfHead = kDim / kTileRows;
constexpr int kPairs = kTileRows / 2;

__device__ __forceinline__ void load_channels(const float* from, float (&to)[kTileRows]) {
#pragma unroll
  for (int i = 0; i < kTileRows; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    to[i] = four.x;
    to[i + 1] = four.y;
    to[i + 2] = four.z;
    to[i + 3] = four.w;
  }
}
__device__ __forceinline__ void load_channels(const __nv_bfloat16* from, float (&to)[kTileRows]) {
#pragma unroll
  for (int i = 0; i < kTileRows; i += 8) {
    const uint4 eight = *reinterpret_cast<const uint4*>(from + i);
    const std::uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      to[i + 2 * j] = __uint_as_float(words[j] << 16);
      to[i + 2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
    }
  }
}

__device__ __forceinline__ void store_eight(__nv_bfloat16* to, const float* from) {
  *reinterpret_cast<uint4*>(to) =
      uint4{pack_bf16x2(from[0], from[1]), pack_bf16x2(from[2], from[3]),
            pack_bf16x2(from[4], from[5]), pack_bf16x2(from[6], from[7])};
}

// Where the row's head stands in its page, at slot `position % kPageTokens`.
template <typename In>
__device__ __nv_bfloat16* slot_of(const KvWriteArgs<In>& args, int row, int position,
                                  int head_in_page) {
  const SegmentInfo& segment = args.step.segments[args.step.segment_of[row]];
  const int group = static_cast<int>(args.group);
  const int page = position / static_cast<int>(kPageTokens);
  auto* bytes = reinterpret_cast<std::uint8_t*>(
      args.step.pages[segment.page_begin[group] + page - segment.first_page[group]]);
  return reinterpret_cast<__nv_bfloat16*>(bytes + args.layer_offset) +
         (head_in_page * kPageTokens + position % kPageTokens) * kDim;
}

template <typename In>
__global__ void __launch_bounds__(kThreads)
    kv_write_rope_kernel(const __grid_constant__ KvWriteArgs<In> args) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int row = static_cast<int>(index / (heads * kTilesOfHead));
  if (row >= args.step.num_rows) return;
  const int position = args.step.positions[row];
  if (position < 0) return;
  const int of_row = static_cast<int>(index - std::int64_t{row} * heads * kTilesOfHead);
  const int head = of_row / kTilesOfHead;
  const int tile = of_row % kTilesOfHead;

  float x[kTileRows];
  load_channels(args.qkv + index * kTileRows, x);
  if (head < args.num_heads + args.num_kv_heads) {
    const float* angles = args.rope_table + std::int64_t{position} * kDim + tile * kPairs;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float cosine = __ldg(angles + i);
      const float sine = __ldg(angles + kDim / 2 + i);
      const float x0 = x[i];
      const float x1 = x[kPairs + i];
      x[i] = fmaf(x0, cosine, -x1 * sine);
      x[kPairs + i] = fmaf(x1, cosine, x0 * sine);
    }
  }
  __nv_bfloat16* to = head < args.num_heads
                          ? args.q_out + (std::int64_t{row} * args.num_heads + head) * kDim
                          : slot_of(args, row, position, head - args.num_heads);
  store_eight(to + tile * kPairs, x);
  store_eight(to + kDim / 2 + tile * kPairs, x + kPairs);
}

}  // namespace

template <typename In>
void kv_write_rope(const KvWriteArgs<In>& args, cudaStream_t stream) {
  const std::int64_t threads =
      std::int64_t{args.step.num_rows} * (args.num_heads + 2 * args.num_kv_heads) * kTilesOfHead;
  launch(kv_write_rope_kernel<In>,
         {.blocks = static_cast<int>((threads + kThreads - 1) / kThreads), .threads = kThreads},
         args, "kv_write", stream);
}
template void kv_write_rope(const KvWriteArgs<float>&, cudaStream_t);
template void kv_write_rope(const KvWriteArgs<__nv_bfloat16>&, cudaStream_t);

}  // namespace gptoss::cuda
