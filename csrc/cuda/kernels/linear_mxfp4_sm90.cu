// linear_mxfp4 on Hopper: expert products with MXFP4 weights by wgmma and TMA (gemm_sm90.h), to
// float32 [slots][rows] or through swiglu to bf16 [slots][rows / 2]. 2 * slots * rows * cols
// operations, 17 bytes for 32 weights. Many tokens an expert: tiles of 128 rows by up to 256
// tokens; few: 256 rows by up to 64, four warpgroups to decode what memory brings.
#include "cuda/device/gemm_sm90.h"
#include "cuda/kernels/linear_mxfp4.h"
#include "cuda/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/tuning.h"

namespace gptoss::cuda {
namespace {

using WideShape = GemmShape<WeightFormat::kMxfp4, 2, 256, 32, 1>;
using NarrowShape = GemmShape<WeightFormat::kMxfp4, 4, 64, 16, 2>;

template <class Shape, TileOutput kOutput>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    linear_mxfp4_sm90_kernel(const __grid_constant__ MappedGemmArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  gemm_block<Shape, kOutput>(args);
#endif
}

template <class Shape, TileOutput kOutput>
void launch_shape(const ExpertProduct& product, const DeviceInfo& device, cudaStream_t stream) {
  const MxTiles& weight = product.weight;
  const MappedGemmArgs args{
      .weight_map = weight_tensor_map(weight, Shape::kRowTiles, Shape::kChunks),
      .token_map = token_tensor_map(product.x, product.num_slots, weight.cols, Shape::kGranule),
      .gemm = {
          .tiles = {product.tiles, product.num_tiles, 0, 0},
          .num_stages = static_cast<std::int32_t>(tiles_along(weight.k_chunks(), Shape::kChunks)),
          .row_tiles = static_cast<std::int32_t>(weight.row_tiles()),
          .row_blocks =
              static_cast<std::int32_t>(tiles_along(weight.row_tiles(), Shape::kRowTiles)),
          .box_tokens = Shape::kGranule,
          .output = {.out = product.out,
                     .out_stride = product.out_stride,
                     .bias = product.bias,
                     .rows = static_cast<std::int32_t>(weight.rows),
                     .swiglu_limit = product.swiglu_limit,
                     .swiglu_alpha = product.swiglu_alpha}}};
  launch(linear_mxfp4_sm90_kernel<Shape, kOutput>,
         {.blocks = device.num_sms, .threads = Shape::kThreads, .smem = Shape::kSmemBytes}, args,
         "linear_mxfp4", stream);
}

template <class Shape>
void launch_output(const ExpertProduct& product, const DeviceInfo& device, cudaStream_t stream) {
  if (product.output == TileOutput::kSwiglu) {
    launch_shape<Shape, TileOutput::kSwiglu>(product, device, stream);
  } else {
    launch_shape<Shape, TileOutput::kStore>(product, device, stream);
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
  if (product.tile_tokens <= NarrowShape::kMaxTokens) {
    launch_output<NarrowShape>(product, device, stream);
  } else {
    launch_output<WideShape>(product, device, stream);
  }
}

}  // namespace gptoss::cuda
