// linear_mxfp4: for each tile of tokens, sorted by expert, x bf16 [slots][cols] times its expert's
// MXFP4 matrix^T + bias, to float32 [slots][rows] or through swiglu to bf16 [slots][rows / 2];
// float32 accumulation. 2 * slots * rows * cols operations; reads the 4.25-bit weights of an expert
// once for every tile of its tokens. mma.sync on any device from 8.0 on (gemm_mma.h);
// linear_mxfp4_sm90.cu has Hopper's.
#include "cuda/device/gemm_mma.h"
#include "cuda/kernels/linear_mxfp4.h"
#include "cuda/launch.h"

namespace gptoss::cuda {
namespace {

using Shape = MmaShape<WeightFormat::kMxfp4>;

template <TileOutput kOutput>
__global__ void __launch_bounds__(Shape::kThreads, 1) linear_mxfp4_kernel(const MmaGemmArgs args) {
  mma_gemm_block<WeightFormat::kMxfp4, kOutput>(args);
}

}  // namespace

void linear_mxfp4(const ExpertProduct& product, const DeviceInfo& device, cudaStream_t stream) {
  if (product.num_slots == 0) return;
  GPTOSS_REQUIRE(InvalidArgument, product.weight.cols % 8 == 0 && product.weight.rows % 16 == 0,
                 "[linear_mxfp4] expected multiples of 16 rows and 8 columns, got ",
                 product.weight.rows, " and ", product.weight.cols, "; use the CPU for others");
  if (supports_linear_mxfp4_sm90(product, device)) {
    linear_mxfp4_sm90(product, device, stream);
    return;
  }
  GPTOSS_REQUIRE(InvalidArgument, product.tile_tokens <= Shape::kMaxTokens,
                 "[linear_mxfp4] expected tiles of at most ", Shape::kMaxTokens, " tokens, got ",
                 product.tile_tokens, "; sort with expert_tile_tokens of this device");
  const MmaGemmArgs args{
      .gemm = {.tiles = {product.tiles, product.num_tiles, 0, 0},
               .num_stages = static_cast<std::int32_t>(product.weight.k_chunks()),
               .row_tiles = static_cast<std::int32_t>(product.weight.row_tiles()),
               .row_blocks = static_cast<std::int32_t>(
                   tiles_along(product.weight.row_tiles(), Shape::kRowTiles)),
               .box_tokens = 0,
               .output = {.out = product.out,
                          .out_stride = product.out_stride,
                          .bias = product.bias,
                          .rows = static_cast<std::int32_t>(product.weight.rows),
                          .swiglu_limit = product.swiglu_limit,
                          .swiglu_alpha = product.swiglu_alpha}},
      .weights = product.weight.data,
      .weight_k = product.weight.k_chunks(),
      .x = product.x,
      .cols = static_cast<std::int32_t>(product.weight.cols),
      .num_tokens = product.num_slots};
  launch(product.output == TileOutput::kSwiglu ? linear_mxfp4_kernel<TileOutput::kSwiglu>
                                               : linear_mxfp4_kernel<TileOutput::kStore>,
         {.blocks = device.num_sms, .threads = Shape::kThreads, .smem = Shape::kSmemBytes}, args,
         "linear_mxfp4", stream);
}

}  // namespace gptoss::cuda
