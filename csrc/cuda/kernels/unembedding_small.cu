// unembedding_small: logits [logit rows][vocab] float32 = xs W^T / rms of few rows, which
// logit_rows names. Streams the matrix once (1.16 GB for gpt-oss, 270 us of an H200).
#include "cuda/kernels/small_launch.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kDenseWarps* kWarp, kTokens == 1 ? 2 : 1)
    unembedding_small_kernel(const __grid_constant__ UnembeddingSmallArgs args) {
  using Stream = DenseStream<kTokens, kCopy>;
  constexpr int kShareColumns = kGroupRows;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ float factors[kGroupRows];
  const SmallSmem<Stream, kShareColumns> smem(smem_base);
  const int first_row = static_cast<int>(blockIdx.y) * kGroupRows;
  const int num_rows = min(kGroupRows, args.num_logit_rows - first_row);
  const int hidden = static_cast<int>(args.weight.cols);
  const int num_units = units_of_block(static_cast<int>(args.weight.row_tiles()));
  const std::uint32_t row_bytes = dense_row_bytes(hidden);
  const std::int64_t tile_bytes = args.weight.k_tiles() * kDenseTileBytes;
  TileLocator locate(args.weight.data, tile_bytes);
  Stream stream(smem.barriers, smem.ring, hidden);
  stream.start(num_units, locate);
  ptx::launch_dependents();
  ptx::wait_for_dependencies();

  const auto row_of = [&](int row) { return args.logit_rows[first_row + row]; };
  auto* squares = reinterpret_cast<float*>(smem.activations + num_rows * row_bytes);
  copy_rows(smem.activations, args.buffers.xs, hidden, num_rows, row_of);
  stage_squares(squares, args.buffers.attn_squares, hidden, num_rows, row_of);
  copies_landed();
  __syncthreads();  // activations, before they are read
  multiply_units<kTokens, kShareColumns>(
      stream, smem.shares, smem.activations, row_bytes, num_rows, num_units, locate,
      [&] { norm_factors(factors, squares, hidden, args.eps, num_rows); },
      [&](int first_unit, int count) {
        for (int i = static_cast<int>(threadIdx.x); i < count * num_rows * kTileRows;
             i += static_cast<int>(blockDim.x)) {
          const int column = i / kTileRows;
          const int unit = first_unit + column / num_rows;
          const int token =
              (static_cast<int>(blockIdx.x) + unit * static_cast<int>(gridDim.x)) * kTileRows +
              i % kTileRows;
          if (token >= args.weight.rows) continue;  // the last tile's padding
          const int row = column % num_rows;
          args.logits[(first_row + row) * args.weight.rows + token] =
              sum_shares<Stream::kWarps>(smem.shares, column, i % kTileRows) * factors[row];
        }
      });
}

// With one row too all shares wait: 95 tiles a block want few barriers.
std::size_t smem_bytes(int num_rows, std::int64_t columns) {
  return squares_bytes(num_rows, columns) + (num_rows == 1
                                                 ? dense_smem_bytes<1, kGroupRows>(1, columns)
                                                 : dense_smem_bytes(num_rows, columns));
}

}  // namespace

void unembedding_small(const UnembeddingSmallArgs& args, const DeviceInfo& device,
                       Dependence dependence, cudaStream_t stream) {
  launch_small(device, dependence, args.num_logit_rows, args, "unembedding_small", stream,
               SmallVariants<UnembeddingSmallArgs> GPTOSS_SMALL_KERNELS(unembedding_small_kernel),
               SmallShape{.threads = kDenseWarps * kWarp,
                          .units = args.weight.row_tiles(),
                          .groups = row_groups(args.num_logit_rows),
                          .smem = smem_bytes(args.num_logit_rows, args.weight.cols)});
}

}  // namespace gptoss::cuda
