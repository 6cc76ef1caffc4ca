// unembedding_small: logits [logit rows][vocab] float32 = xs W^T / rms of few rows, which
// logit_rows names. Streams the matrix once (1.16 GB for gpt-oss, 270 us of an H200).
#include "cuda/kernels/small_launch.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

template <int kTokens, RingCopy kCopy>
__global__ void __launch_bounds__(kDenseWarps* kWarp, kTokens <= 8 ? 2 : 1)
    unembedding_small_kernel(const __grid_constant__ UnembeddingSmallArgs args) {
  using Stream = DenseStream<kTokens, kCopy>;
  extern __shared__ __align__(128) std::uint8_t smem_base[];
  __shared__ float factors[kGroupRows];
  const SmallSmem<Stream> smem(smem_base);
  const int hidden = static_cast<int>(args.weight.cols);
  const int num_pairs = hidden / kPairColumns;
  const int num_units = units_of_block(static_cast<int>(args.weight.row_tiles()));
  const TileLocator locate(args.weight.data, args.weight.k_tiles() * kDenseTileBytes);
  Stream stream(smem.barriers, smem.ring, hidden);
  stream.start(num_units, locate);
  ptx::launch_dependents();
  ptx::wait_for_dependencies();

  for (int first_row = 0; first_row < args.num_logit_rows; first_row += kGroupRows) {
    const int num_rows = min(kGroupRows, args.num_logit_rows - first_row);
    const auto row_of = [&](int row) { return args.logit_rows[first_row + row]; };
    if (first_row != 0) stream.start(num_units, locate);
    stage_rows<0>(smem.activations, args.buffers.xs, hidden, num_pairs, num_rows, row_of);
    norm_factors(factors, args.buffers.attn_squares, hidden, args.eps, num_rows, row_of);
    __syncthreads();  // activations and factors, before they are read
    multiply_units<kTokens>(
        stream, smem.shares, smem.activations, activation_row_bytes(num_pairs), num_rows, num_units,
        locate, [&](int first_unit, int count) {
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
}

}  // namespace

void unembedding_small(const UnembeddingSmallArgs& args, const DeviceInfo& device,
                       Dependence dependence, cudaStream_t stream) {
  launch_small(device, dependence, args.num_logit_rows, args, "unembedding_small", stream,
               SmallVariants<UnembeddingSmallArgs> GPTOSS_SMALL_KERNELS(unembedding_small_kernel),
               SmallShape{.threads = kDenseWarps * kWarp,
                          .units = args.weight.row_tiles(),
                          .smem = dense_smem_bytes(args.num_logit_rows, args.weight.cols)});
}

}  // namespace gptoss::cuda
