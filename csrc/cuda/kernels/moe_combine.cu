// moe_combine: residual float32 [rows][hidden] += sum over a row's choices, in order, of weight *
// expert_out float32 [slots][hidden], and the norm that reads the sum next, to bf16. Moves 4 *
// (experts_per_token + 2) + 2 bytes an element. One block a row.
#include "cuda/device/row_norm.h"
#include "cuda/kernels/moe_combine.h"
#include "cuda/launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

// As many choices of a row at a time as most models have.
struct Choices {
  static constexpr int kCount = 4;
  std::int64_t places[kCount];
  float weights[kCount];

  __device__ __forceinline__ Choices(const CombineArgs& args, std::int64_t first_slot,
                                     std::int32_t choice) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const bool there = choice + j < args.experts_per_token;
      const std::int64_t slot = first_slot + (there ? choice + j : 0);
      places[j] = args.places == nullptr ? slot : args.places[slot];
      weights[j] = args.weights[slot];
    }
  }
};

// The weighted sum of a row's choices, four channels of it, in order; `first` are the first ones.
__device__ __forceinline__ float4 combine_four(const CombineArgs& args, const Choices& first,
                                               std::int64_t first_slot, std::int32_t i) {
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const auto add = [&](const Choices& choices, std::int32_t choice) {
    float4 v[Choices::kCount];
#pragma unroll
    for (int j = 0; j < Choices::kCount; ++j) {
      const float* row = args.expert_out + choices.places[j] * args.hidden;
      v[j] = *reinterpret_cast<const float4*>(row + 4 * i);
    }
#pragma unroll
    for (int j = 0; j < Choices::kCount; ++j) {
      if (choice + j >= args.experts_per_token) break;
      sum.x = fmaf(choices.weights[j], v[j].x, sum.x);
      sum.y = fmaf(choices.weights[j], v[j].y, sum.y);
      sum.z = fmaf(choices.weights[j], v[j].z, sum.z);
      sum.w = fmaf(choices.weights[j], v[j].w, sum.w);
    }
  };
  add(first, 0);
  for (std::int32_t choice = Choices::kCount; choice < args.experts_per_token;
       choice += Choices::kCount) {
    add(Choices(args, first_slot, choice), choice);
  }
  return sum;
}

__global__ void __launch_bounds__(kRowThreads) moe_combine_kernel(const CombineArgs args) {
  __shared__ float scratch[kRowThreads / 32];
  // The first of a row stay in registers, all of most models' rows; a longer one is read again.
  constexpr std::int32_t kHeld = 3;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t fours = args.hidden / 4;
  const bool norms = args.norm_scale != nullptr;
  float4 scales[kHeld] = {};
  if (norms) {  // no kernel writes them
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int32_t i = thread + j * kRowThreads;
      if (i < fours) scales[j] = load_four(args.norm_scale + 4 * i);
    }
  }
  if (!args.inputs_ready) ptx::wait_for_dependencies();
  const std::int64_t row = blockIdx.x;
  const std::int64_t first_slot = row * args.experts_per_token;
  float* residual = args.residual + row * args.hidden;
  const Choices first(args, first_slot, 0);
  float4 held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const std::int32_t i = thread + j * kRowThreads;
    held[j] = *reinterpret_cast<const float4*>(residual + 4 * (i < fours ? i : thread % fours));
  }
  if (args.inputs_ready) ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const auto added = [&](const float4& old, std::int32_t i) {
    const float4 sum = combine_four(args, first, first_slot, i);
    return make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w);
  };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const std::int32_t i = thread + j * kRowThreads;
    held[j] = added(held[j], i < fours ? i : thread % fours);
  }
  float square_sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const std::int32_t i = thread + j * kRowThreads;
    if (i >= fours) break;
    store_four(residual + 4 * i, held[j]);
    square_sum += squares(held[j]);
  }
  for (std::int32_t i = thread + kHeld * kRowThreads; i < fours; i += kRowThreads) {
    const float4 now = added(*reinterpret_cast<const float4*>(residual + 4 * i), i);
    store_four(residual + 4 * i, now);
    square_sum += squares(now);
  }
  if (!norms) return;
  const float inverse = inverse_rms(block_sum(square_sum, scratch), args.norm_eps, args.hidden);
  __nv_bfloat16* xs = args.xs + row * args.hidden;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const std::int32_t i = thread + j * kRowThreads;
    if (i < fours) store_four(xs + 4 * i, scaled(held[j], inverse, scales[j]));
  }
  for (std::int32_t i = thread + kHeld * kRowThreads; i < fours; i += kRowThreads) {
    const float4 v = *reinterpret_cast<const float4*>(residual + 4 * i);
    store_four(xs + 4 * i, scaled(v, inverse, load_four(args.norm_scale + 4 * i)));
  }
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
