// rope_table: cosines and sines of every position's 32 angles, once at load.
// Bytes: 256 a position, 33.5 MB for 131,072. The angle is the float32 product of position and
// inverse frequency, as in model/yarn; cosine and sine are double, then rounded.
#include <cstring>

#include "cuda/device.h"
#include "cuda/kernels/rope_table.h"

namespace gptoss::cuda {
namespace {

constexpr int kHalf = 32;

struct Frequencies {
  float inverse[kHalf];
  float concentration;
};

__global__ void rope_table_kernel(Frequencies frequencies, std::int64_t positions, float* table) {
  const std::int64_t index = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= positions * kHalf) return;
  const std::int64_t position = index / kHalf;
  const int i = static_cast<int>(index % kHalf);
  const float angle = __fmul_rn(static_cast<float>(position), frequencies.inverse[i]);
  double sine;
  double cosine;
  sincos(static_cast<double>(angle), &sine, &cosine);
  table[position * 2 * kHalf + i] =
      __fmul_rn(static_cast<float>(cosine), frequencies.concentration);
  table[position * 2 * kHalf + kHalf + i] =
      __fmul_rn(static_cast<float>(sine), frequencies.concentration);
}

}  // namespace

void fill_rope_table(const Yarn& yarn, std::int64_t positions, float* table, cudaStream_t stream) {
  Frequencies frequencies;
  GPTOSS_REQUIRE(CheckpointError, yarn.inverse_frequencies().size() == std::size_t{kHalf},
                 "[rope_table] expected ", kHalf, " frequencies, got ",
                 yarn.inverse_frequencies().size());
  std::memcpy(frequencies.inverse, yarn.inverse_frequencies().data(), sizeof(frequencies.inverse));
  frequencies.concentration = yarn.concentration();
  constexpr int kThreads = 256;
  const std::int64_t blocks = (positions * kHalf + kThreads - 1) / kThreads;
  rope_table_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(frequencies, positions,
                                                                            table);
  check_launch("rope_table");
}

}  // namespace gptoss::cuda
