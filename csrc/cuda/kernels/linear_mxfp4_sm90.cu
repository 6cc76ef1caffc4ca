// linear_mxfp4 on Hopper: expert products with MXFP4 weights, to float32 [slots][rows] or through
// swiglu to bf16 [slots][rows / 2]. 2 * slots * rows * cols operations, 17 bytes for 32 weights.
// Many tokens an expert: tiles of 192 rows by up to 192 tokens (gemm_sm90.h), which divide 2,880
// and 5,760 rows evenly. Few: up to 256 rows by up to 64, four warpgroups to decode what memory
// brings (gemm_few_sm90.h).
#include "cuda/device/gemm_few_sm90.h"
#include "cuda/device/gemm_sm90.h"
#include "cuda/kernels/linear_mxfp4.h"
#include "cuda/kernels/router_topk.h"
#include "cuda/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/tuning.h"

namespace gptoss::cuda {
namespace {

using WideShape = GemmShape<WeightFormat::kMxfp4, 3, 192, 32>;

template <TileOutput kOutput>
__global__ void __launch_bounds__(WideShape::kThreads, 1)
    linear_mxfp4_sm90_kernel(const __grid_constant__ MappedGemmArgs<WideShape> args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  gemm_block<WideShape, kOutput>(args);
#endif
}

template <TileOutput kOutput>
__global__ void __launch_bounds__(FewShape::kThreads, 1)
    linear_mxfp4_few_sm90_kernel(const __grid_constant__ FewArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  gemm_few_block<kOutput>(args);
#endif
}

// Blocks along the rows are of `row_tiles` tiles, stages of `chunks` times 64 columns.
GemmArgs gemm_arguments(const ExpertProduct& product, std::int32_t row_tiles, std::int32_t chunks,
                        std::int32_t box_tokens) {
  const MxTiles& weight = product.weight;
  return {.tiles = {product.tiles, product.num_tiles, 0, 0},
          .num_stages = static_cast<std::int32_t>(tiles_along(weight.k_chunks(), chunks)),
          .row_tiles = static_cast<std::int32_t>(weight.row_tiles()),
          .row_blocks = static_cast<std::int32_t>(tiles_along(weight.row_tiles(), row_tiles)),
          .box_tokens = box_tokens,
          .early = product.tiles_ready,
          .num_taken = product.num_taken,
          .output = {.out = product.out,
                     .out_stride = product.out_stride,
                     .bias = product.bias,
                     .rows = static_cast<std::int32_t>(weight.rows),
                     .swiglu_limit = product.swiglu_limit,
                     .swiglu_alpha = product.swiglu_alpha}};
}

template <class Shape>
LaunchShape launch_shape(const DeviceInfo& device) {
  return {.blocks = device.num_sms, .threads = Shape::kThreads, .smem = Shape::kSmemBytes};
}

template <TileOutput kOutput>
void launch_output(const ExpertProduct& product, const DeviceInfo& device, cudaStream_t stream) {
  const MxTiles& weight = product.weight;
  // Stages of several chunks take x in whole chunks.
  if (product.tile_tokens <= FewShape::kMaxTokens && weight.cols % kMxChunk == 0) {
    FewArgs args{
        .weight_map = weight_tensor_map(weight, FewShape::kUnitTiles, FewShape::kChunks),
        .token_maps = {},
        .num_chunks = static_cast<std::int32_t>(weight.k_chunks()),
        .list_size = static_cast<std::int32_t>(
            1 + expert_tiles_bound(product.num_slots, weight.num_experts, product.tile_tokens)),
        .gemm =
            gemm_arguments(product, FewShape::kUnitTiles, FewShape::kChunks, FewShape::kGranule)};
    std::uint32_t tokens = 0;
    for (CUtensorMap& map : args.token_maps) {
      tokens += FewShape::kGranule;
      map = token_chunks_tensor_map(product.x, product.num_slots, weight.cols, tokens,
                                    FewShape::kChunks);
    }
    launch(linear_mxfp4_few_sm90_kernel<kOutput>, launch_shape<FewShape>(device), args,
           "linear_mxfp4", stream);
  } else {
    MappedGemmArgs<WideShape> args{
        .weight_map = weight_tensor_map(weight, WideShape::kRowTiles, 1),
        .token_maps = {},
        .gemm = gemm_arguments(product, WideShape::kRowTiles, 1, WideShape::kGranule)};
    std::uint32_t tokens = 0;
    for (CUtensorMap& map : args.token_maps) {
      tokens += WideShape::kGranule;
      map = token_tensor_map(product.x, product.num_slots, weight.cols, tokens);
    }
    launch(linear_mxfp4_sm90_kernel<kOutput>, launch_shape<WideShape>(device), args, "linear_mxfp4",
           stream);
  }
}

}  // namespace

bool supports_linear_mxfp4_sm90(const ExpertProduct& product, const DeviceInfo& device) {
  if (!has_wgmma(device)) return false;
  if (product.weight.cols % 8 != 0) return false;  // rows of x must be multiples of 16 bytes
  if (reinterpret_cast<std::uintptr_t>(product.x) % 16 != 0) return false;  // tensor maps' bases
  return product.tile_tokens <= WideShape::kMaxTokens;
}

void linear_mxfp4_sm90(const ExpertProduct& product, const DeviceInfo& device,
                       cudaStream_t stream) {
  if (product.output == TileOutput::kSwiglu) {
    launch_output<TileOutput::kSwiglu>(product, device, stream);
  } else {
    launch_output<TileOutput::kStore>(product, device, stream);
  }
}

}  // namespace gptoss::cuda
