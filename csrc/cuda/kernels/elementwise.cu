// Conversions and single ops of the op table; each reads and writes its arrays once.
#include "cuda/device.h"
#include "cuda/device/gemm_epilogue.h"
#include "cuda/kernels/elementwise.h"
#include "model/model_config.h"

namespace gptoss::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHead = static_cast<int>(kHeadDim);

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}
__device__ std::int64_t thread_index() {
  return std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

__global__ void round_rows_kernel(RoundRowsArgs args) {
  const std::int64_t index = thread_index();
  if (index >= args.num_rows * args.out_cols) return;
  const std::int64_t row = index / args.out_cols;
  const std::int64_t col = index % args.out_cols;
  const std::int64_t source = args.rows == nullptr ? row : args.rows[row];
  args.out[index] =
      col < args.cols ? __float2bfloat16_rn(args.x[source * args.cols + col]) : __nv_bfloat16(0.0f);
}

__global__ void widen_kernel(const __nv_bfloat16* x, std::int64_t count, float* out) {
  const std::int64_t index = thread_index();
  if (index < count) out[index] = __bfloat162float(x[index]);
}

__global__ void swiglu_rows_kernel(SwigluRowsArgs args) {
  const std::int64_t index = thread_index();
  if (index >= args.rows * args.cols) return;
  args.out[index] =
      swiglu(args.gate_up[2 * index], args.gate_up[2 * index + 1], args.limit, args.alpha);
}

__global__ void rotate_rows_kernel(float* x, std::int64_t count, std::int64_t num_heads,
                                   const float* cos_sin) {
  const std::int64_t index = thread_index();
  if (index >= count) return;
  constexpr int kHalf = kHead / 2;
  const std::int64_t head = index / kHalf;
  const int dim = static_cast<int>(index % kHalf);
  const float* angles = cos_sin + head / num_heads * kHead;
  float* pair = x + head * kHead + dim;
  const float first = pair[0];
  const float second = pair[kHalf];
  pair[0] = first * angles[dim] - second * angles[kHalf + dim];
  pair[kHalf] = second * angles[dim] + first * angles[kHalf + dim];
}

}  // namespace

void round_rows(const RoundRowsArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  round_rows_kernel<<<blocks_for(args.num_rows * args.out_cols), kThreads, 0, stream>>>(args);
  check_launch("round_rows");
}

void widen(const __nv_bfloat16* x, std::int64_t count, float* out, cudaStream_t stream) {
  if (count == 0) return;
  widen_kernel<<<blocks_for(count), kThreads, 0, stream>>>(x, count, out);
  check_launch("widen");
}

void swiglu_rows(const SwigluRowsArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  swiglu_rows_kernel<<<blocks_for(args.rows * args.cols), kThreads, 0, stream>>>(args);
  check_launch("swiglu");
}

void rotate_rows(float* x, std::int64_t rows, std::int64_t num_heads, const float* cos_sin,
                 cudaStream_t stream) {
  const std::int64_t count = rows * num_heads * (kHead / 2);
  if (count == 0) return;
  rotate_rows_kernel<<<blocks_for(count), kThreads, 0, stream>>>(x, count, num_heads, cos_sin);
  check_launch("rope");
}

}  // namespace gptoss::cuda
