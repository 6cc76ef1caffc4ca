// rms_norm: x float32 [rows][hidden] to bf16 or float32 [rows][hidden], scale bf16 [hidden]; the
// mean of squares in float32, one rounding at the end. Moves 6 bytes an element (bf16 out), the
// second read of x from cache. One block a row.
#include "cuda/device/row_norm.h"
#include "cuda/kernels/rms_norm.h"
#include "cuda/launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

template <typename Out>
__global__ void __launch_bounds__(kRowThreads) rms_norm_kernel(const RowNormArgs<Out> args) {
  __shared__ float scratch[kRowThreads / 32];
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int64_t row = args.rows == nullptr ? blockIdx.x : args.rows[blockIdx.x];
  const float* x = args.x + row * args.hidden;
  float sum = 0.0f;
  for (std::int32_t i = threadIdx.x; i < args.hidden / 4; i += kRowThreads) {
    sum += squares(*reinterpret_cast<const float4*>(x + 4 * i));
  }
  write_normalised(x, block_sum(sum, scratch), args.eps, args.hidden, args.scale,
                   args.out + static_cast<std::int64_t>(blockIdx.x) * args.hidden);
}

}  // namespace

template <typename Out>
void rms_norm(const RowNormArgs<Out>& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  GPTOSS_REQUIRE(InvalidArgument, args.hidden % 4 == 0,
                 "[rms_norm] expected a multiple of 4 channels, got ", args.hidden,
                 "; use the CPU for others");
  launch(rms_norm_kernel<Out>, {.blocks = args.num_rows, .threads = kRowThreads}, args, "rms_norm",
         stream);
}

template void rms_norm(const RowNormArgs<float>&, cudaStream_t);
template void rms_norm(const RowNormArgs<__nv_bfloat16>&, cudaStream_t);

}  // namespace gptoss::cuda
