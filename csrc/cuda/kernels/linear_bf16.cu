// linear_bf16: out float32 [tokens][rows] = or += x bf16 [tokens][cols] * weight^T + bias, weight
// bf16 in the tiles of layout.h, float32 accumulation. 2 * tokens * rows * cols operations; reads
// each weight once for every 128 tokens, from L2 after the first. mma.sync on any device from 8.0
// on (gemm_mma.h); linear_bf16_sm90.cu has Hopper's.
#include "cuda/device/gemm_mma.h"
#include "cuda/kernels/linear_bf16.h"
#include "cuda/launch.h"
#include "cuda/tuning.h"

namespace gptoss::cuda {
namespace {

using Shape = MmaShape<WeightFormat::kBf16>;

template <TileOutput kOutput>
__global__ void __launch_bounds__(Shape::kThreads, 1) linear_bf16_kernel(const MmaGemmArgs args) {
  mma_gemm_block<WeightFormat::kBf16, kOutput>(args);
}

}  // namespace

void linear_bf16(const DenseProduct& product, const DeviceInfo& device, cudaStream_t stream) {
  if (product.num_tokens == 0) return;
  GPTOSS_REQUIRE(InvalidArgument, product.weight.cols % 8 == 0,
                 "[linear_bf16] expected a multiple of 8 columns, got ", product.weight.cols,
                 "; use the CPU for others");
  if (supports_linear_bf16_sm90(product, device)) {
    linear_bf16_sm90(product, device, stream);
    return;
  }
  const std::int32_t tile_tokens = Shape::kMaxTokens;
  const std::int64_t row_blocks = tiles_along(product.weight.row_tiles(), Shape::kRowTiles);
  const MmaGemmArgs args{
      .gemm = {.tiles = {nullptr, nullptr, product.num_tokens, tile_tokens},
               .num_stages =
                   static_cast<std::int32_t>(tiles_along(product.weight.cols, kStageCols)),
               .row_tiles = static_cast<std::int32_t>(product.weight.row_tiles()),
               .row_blocks = static_cast<std::int32_t>(row_blocks),
               .box_tokens = 0,
               .output = {.out = product.out,
                          .out_stride = product.out_stride,
                          .bias = product.bias,
                          .rows = static_cast<std::int32_t>(product.weight.rows),
                          .swiglu_limit = 0.0f,
                          .swiglu_alpha = 0.0f}},
      .weights = product.weight.data,
      .weight_k = product.weight.k_tiles(),
      .x = product.x,
      .cols = static_cast<std::int32_t>(product.weight.cols),
      .num_tokens = product.num_tokens};
  const std::int64_t num_tiles = row_blocks * tiles_along(product.num_tokens, tile_tokens);
  launch(product.output == TileOutput::kAdd ? linear_bf16_kernel<TileOutput::kAdd>
                                            : linear_bf16_kernel<TileOutput::kStore>,
         {.blocks = static_cast<int>(std::min<std::int64_t>(num_tiles, device.num_sms)),
          .threads = Shape::kThreads,
          .smem = Shape::kSmemBytes},
         args, "linear_bf16", stream);
}

}  // namespace gptoss::cuda
