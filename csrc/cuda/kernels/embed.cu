// embed: rows of the bf16 table [vocab][hidden] to the residual stream, float32 [rows][hidden],
// exactly; with a norm's scale also xs = bf16(residual * scale) and the squares' sums of every 16
// channels. A block a row; moves 6 bytes a channel, 10 with xs.
#include "cuda/device/softmax.h"
#include "cuda/kernels/attention.h"
#include "cuda/layout.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEight = 8;  // channels a thread takes at a time
static_assert(kTileRows == 2 * kEight, "two neighbours share a sum of squares");

__device__ __forceinline__ void unpack_eight(const __nv_bfloat16* from, float (&to)[kEight]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(from);
  const std::uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ EmbedArgs args) {
  ptx::launch_dependents();
  ptx::wait_for_dependencies();
  const int row = static_cast<int>(blockIdx.x);
  const int token = args.tokens[row];
  if (token < 0) return;
  const __nv_bfloat16* from = args.embedding + std::int64_t{token} * args.hidden;
  const std::int64_t at = std::int64_t{row} * args.hidden;
  const int eights = args.hidden / kEight;
  const int tiles = (eights + 1) / 2;
  for (int first = 0; first < eights; first += kThreads) {
    const int eight = first + static_cast<int>(threadIdx.x);
    const bool there = eight < eights;
    float squares = 0.0f;
    if (there) {
      float x[kEight];
      unpack_eight(from + eight * kEight, x);
      auto* to = reinterpret_cast<float4*>(args.residual + at + eight * kEight);
      to[0] = float4{x[0], x[1], x[2], x[3]};
      to[1] = float4{x[4], x[5], x[6], x[7]};
      if (args.norm_scale != nullptr) {
        float scale[kEight];
        unpack_eight(args.norm_scale + eight * kEight, scale);
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
          squares = fmaf(x[i], x[i], squares);
          scale[i] *= x[i];
        }
        *reinterpret_cast<uint4*>(args.xs + at + eight * kEight) =
            uint4{pack_bf16x2(scale[0], scale[1]), pack_bf16x2(scale[2], scale[3]),
                  pack_bf16x2(scale[4], scale[5]), pack_bf16x2(scale[6], scale[7])};
      }
    }
    if (args.norm_scale != nullptr) {
      squares += __shfl_xor_sync(0xffffffffu, squares, 1);
      if (there && eight % 2 == 0) {
        args.square_sums[std::int64_t{row} * tiles + eight / 2] = squares;
      }
    }
  }
}

}  // namespace

void embed(const EmbedArgs& args, Dependence dependence, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  GPTOSS_REQUIRE(InvalidArgument, args.hidden % kEight == 0,
                 "[embed] expected a multiple of 8 channels, got ", args.hidden,
                 "; use the CPU for others");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.num_rows));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependence == Dependence::kProgrammatic ? 1 : 0;
  check(cudaLaunchKernelEx(&config, embed_kernel, args), "embed");
}

}  // namespace gptoss::cuda
