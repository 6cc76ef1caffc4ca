// linear_bf16 on Hopper: out float32 [tokens][rows] = or += x bf16 [tokens][cols] * weight^T + bias
// by wgmma and TMA (gemm_sm90.h). 2 * tokens * rows * cols operations. Tiles of 128 rows by up to
// 256 tokens for many tokens, of 64 rows by up to 128 where the weights' bytes are the time and
// every multiprocessor should have some to read.
#include <algorithm>
#include <type_traits>

#include "cuda/device/gemm_sm90.h"
#include "cuda/kernels/linear_bf16.h"
#include "cuda/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/tuning.h"

namespace gptoss::cuda {
namespace {

using WideShape = GemmShape<WeightFormat::kBf16, 2, 256, 32>;
using MiddleShape = GemmShape<WeightFormat::kBf16, 1, 128, 32>;
using NarrowShape = GemmShape<WeightFormat::kBf16, 1, 64, 16>;
using SplitMiddleShape = GemmShape<WeightFormat::kBf16, 1, 128, 32, 2>;
using SplitNarrowShape = GemmShape<WeightFormat::kBf16, 1, 64, 16, 2>;

template <class Shape, TileOutput kOutput>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    linear_bf16_sm90_kernel(const __grid_constant__ MappedGemmArgs<Shape> args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  gemm_block<Shape, kOutput>(args);
#endif
}

template <class Shape, TileOutput kOutput>
void launch_shape(const DenseProduct& product, std::int32_t tile_tokens, const DeviceInfo& device,
                  cudaStream_t stream) {
  const std::int64_t row_blocks = tiles_along(product.weight.row_tiles(), Shape::kRowTiles);
  const MappedGemmArgs<Shape> args{
      .weight_map = weight_tensor_map(product.weight, Shape::kRowTiles),
      .token_maps = {token_tensor_map(product.x, product.num_tokens, product.weight.cols,
                                      static_cast<std::uint32_t>(tile_tokens))},
      .gemm = {
          .tiles = {nullptr, nullptr, product.num_tokens, tile_tokens},
          .num_stages = static_cast<std::int32_t>(tiles_along(product.weight.cols, kStageCols)),
          .row_tiles = static_cast<std::int32_t>(product.weight.row_tiles()),
          .row_blocks = static_cast<std::int32_t>(row_blocks),
          .box_tokens = tile_tokens,
          .early = true,
          .output = {.out = product.out,
                     .out_stride = product.out_stride,
                     .bias = product.bias,
                     .rows = static_cast<std::int32_t>(product.weight.rows),
                     .swiglu_limit = 0.0f,
                     .swiglu_alpha = 0.0f}}};
  const std::int64_t num_tiles = row_blocks * tiles_along(product.num_tokens, tile_tokens);
  launch(linear_bf16_sm90_kernel<Shape, kOutput>,
         {.blocks =
              static_cast<int>(std::min<std::int64_t>(num_tiles * Shape::kSplits, device.num_sms)),
          .threads = Shape::kThreads,
          .smem = Shape::kSmemBytes,
          .cluster = Shape::kSplits},
         args, "linear_bf16", stream);
}

template <class Shape>
void launch_output(const DenseProduct& product, std::int32_t tile_tokens, const DeviceInfo& device,
                   cudaStream_t stream) {
  if (product.output == TileOutput::kAdd) {
    launch_shape<Shape, TileOutput::kAdd>(product, tile_tokens, device, stream);
  } else {
    launch_shape<Shape, TileOutput::kStore>(product, tile_tokens, device, stream);
  }
}

}  // namespace

bool supports_linear_bf16_sm90(const DenseProduct& product, const DeviceInfo& device) {
  if (!has_wgmma(device)) return false;
  if (product.weight.cols % 8 != 0) return false;  // rows of x must be multiples of 16 bytes
  if (reinterpret_cast<std::uintptr_t>(product.x) % 16 != 0) return false;  // tensor maps' bases
  return true;
}

void linear_bf16_sm90(const DenseProduct& product, const DeviceInfo& device, cudaStream_t stream) {
  const DenseTiling tiling = dense_tiling(product.weight.rows, product.num_tokens, device);
  const auto launch_as = [&]<class Shape>(std::type_identity<Shape>) {
    launch_output<Shape>(product, tiling.tile_tokens, device, stream);
  };
  constexpr std::int64_t kLeastColumns = 512;  // that two blocks share
  const bool split = tiling.splits == 2 && product.weight.cols >= kLeastColumns;
  const bool middle = tiling.tile_tokens > NarrowShape::kMaxTokens;
  if (tiling.warpgroups == 2) {
    launch_as(std::type_identity<WideShape>());
  } else if (split) {
    middle ? launch_as(std::type_identity<SplitMiddleShape>())
           : launch_as(std::type_identity<SplitNarrowShape>());
  } else {
    middle ? launch_as(std::type_identity<MiddleShape>())
           : launch_as(std::type_identity<NarrowShape>());
  }
}

}  // namespace gptoss::cuda
