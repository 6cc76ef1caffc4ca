#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/yarn.h"

namespace gptoss::cuda {

// table: [positions][64] float32, 32 cosines, then 32 sines, both times the concentration.
void fill_rope_table(const Yarn& yarn, std::int64_t positions, float* table, cudaStream_t stream);

}  // namespace gptoss::cuda
