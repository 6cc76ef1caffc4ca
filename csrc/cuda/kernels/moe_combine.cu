// moe_combine: residual float32 [rows][hidden] += sum over a row's choices, in order, of weight *
// expert_out float32 [slots][hidden], and the norm that reads the sum next, to bf16. Moves 4 *
// (experts_per_token + 2) + 2 bytes an element. One block a row.
#include "cuda/device/row_norm.h"
#include "cuda/kernels/moe_combine.h"
#include "cuda/launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

__global__ void __launch_bounds__(kRowThreads) moe_combine_kernel(const CombineArgs args) {
  __shared__ float scratch[kRowThreads / 32];
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int64_t row = blockIdx.x;
  const std::int64_t first_slot = row * args.experts_per_token;
  float* residual = args.residual + row * args.hidden;
  float square_sum = 0.0f;
  for (std::int32_t i = threadIdx.x; i < args.hidden / 4; i += kRowThreads) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (std::int32_t choice = 0; choice < args.experts_per_token; ++choice) {
      const std::int64_t slot = first_slot + choice;
      const std::int64_t place = args.places == nullptr ? slot : args.places[slot];
      const float weight = args.weights[slot];
      const float4 v =
          *reinterpret_cast<const float4*>(args.expert_out + place * args.hidden + 4 * i);
      sum.x = fmaf(weight, v.x, sum.x);
      sum.y = fmaf(weight, v.y, sum.y);
      sum.z = fmaf(weight, v.z, sum.z);
      sum.w = fmaf(weight, v.w, sum.w);
    }
    float4* out = reinterpret_cast<float4*>(residual + 4 * i);
    const float4 old = *out;
    sum = make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w);
    *out = sum;
    square_sum += squares(sum);
  }
  if (args.norm_scale == nullptr) return;
  write_normalised(residual, block_sum(square_sum, scratch), args.norm_eps, args.hidden,
                   args.norm_scale, args.xs + row * args.hidden);
}

}  // namespace

void moe_combine(const CombineArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  GPTOSS_REQUIRE(InvalidArgument, args.hidden % 4 == 0,
                 "[moe_combine] expected a multiple of 4 channels, got ", args.hidden,
                 "; use the CPU for others");
  launch(moe_combine_kernel, {.blocks = args.num_rows, .threads = kRowThreads}, args, "moe_combine",
         stream);
}

}  // namespace gptoss::cuda
