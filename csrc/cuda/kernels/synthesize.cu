// synthesize: random weights straight into device memory. Byte n of a tensor is a function of
// (seed, tensor, n), however the tensor is cut.
// Bytes: each written once; some twenty integer operations for eight bytes of codes.
#include <cuda_bf16.h>

#include "cuda/device.h"
#include "cuda/kernels/synthesize.h"

namespace gptoss::cuda {
namespace {

constexpr int kThreads = 256;

// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
__device__ std::uint64_t mix(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

__global__ void synthesize_kernel(SynthesizeArgs args) {
  // Eight bytes of the tensor a thread.
  const std::size_t first = args.begin / 8;
  const std::size_t word = first + std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::size_t end = args.begin + args.num_bytes;
  if (word * 8 >= end) return;
  const std::uint64_t random =
      mix(mix(args.seed + 0x9e3779b97f4a7c15u * (args.stream + 1)) + 0x9e3779b97f4a7c15u * word);
  if (args.kind == Synthesized::kNormal) {
    for (int i = 0; i < 4; ++i) {
      const std::size_t at = word * 8 + 2 * static_cast<std::size_t>(i);
      if (at < args.begin || at >= end) continue;
      const float uniform = (static_cast<float>(random >> (16 * i) & 0xffff) + 0.5f) / 65536.0f;
      const float value = args.normal.mean + args.normal.deviation * normcdfinvf(uniform);
      *reinterpret_cast<__nv_bfloat16*>(args.out + (at - args.begin)) = __float2bfloat16_rn(value);
    }
    return;
  }
  for (int i = 0; i < 8; ++i) {
    const std::size_t at = word * 8 + static_cast<std::size_t>(i);
    if (at < args.begin || at >= end) continue;
    const auto byte = static_cast<std::uint8_t>(random >> (8 * i));
    args.out[at - args.begin] = args.kind == Synthesized::kScales
                                    ? static_cast<std::uint8_t>(args.smallest_scale + (byte & 3))
                                    : byte;
  }
}

}  // namespace

void synthesize(const SynthesizeArgs& args, cudaStream_t stream) {
  const std::size_t words = args.num_bytes / 8 + 2;  // begin may lie inside the first
  const std::size_t blocks = (words + kThreads - 1) / kThreads;
  synthesize_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args);
  check_launch("synthesize");
}

}  // namespace gptoss::cuda
