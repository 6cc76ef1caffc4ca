#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace gptoss::cuda {

struct Normal {
  float mean = 0;
  float deviation = 1;
};
enum class Synthesized { kBytes, kScales, kNormal };

struct SynthesizeArgs {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;   // of random numbers: the tensor
  std::size_t begin = 0;      // bytes into the tensor, a multiple of 2 for kNormal
  std::size_t num_bytes = 0;  // likewise
  std::uint8_t* out = nullptr;
  Synthesized kind = Synthesized::kBytes;
  Normal normal;                    // kNormal: bf16 values
  std::uint8_t smallest_scale = 0;  // kScales: four neighbouring scale bytes, equally likely
};
void synthesize(const SynthesizeArgs& args, cudaStream_t stream);

}  // namespace gptoss::cuda
