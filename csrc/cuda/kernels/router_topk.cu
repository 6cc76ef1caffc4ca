// router_topk: float32 logits [rows][experts] to the ids and softmax weights of the k largest, one
// warp a row.
#include "cuda/device/choose_experts.h"
#include "cuda/kernels/router_topk.h"
#include "cuda/launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kTopkWarps = 8;

__global__ void __launch_bounds__(kTopkWarps * 32) router_topk_kernel(const TopkArgs args) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const std::int64_t row = blockIdx.x * kTopkWarps + threadIdx.x / 32;
  if (row >= args.num_rows) return;
  const std::int64_t first = row * args.experts_per_token;
  choose_experts(args.logits + row * args.num_experts, args.num_experts, args.experts_per_token,
                 args.forced == nullptr ? nullptr : args.forced + first, args.expert_ids + first,
                 args.weights + first);
}

}  // namespace

void router_topk(const TopkArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  launch(router_topk_kernel,
         {.blocks = (args.num_rows + kTopkWarps - 1) / kTopkWarps, .threads = kTopkWarps * 32},
         args, "router_topk", stream);
}

}  // namespace gptoss::cuda
