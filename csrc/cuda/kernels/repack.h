// From the checkpoint's order to the tiles of layout.h, on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/layout.h"

namespace gptoss::cuda {

// Rows of a bf16 matrix, as the checkpoint holds them, into row tiles.
struct RepackDenseArgs {
  const std::uint16_t* source = nullptr;  // [rows][cols]
  std::int64_t rows = 0;                  // kRope: a multiple of 64
  std::int64_t cols = 0;
  RowOrder order = RowOrder::kNatural;
  std::uint8_t* out = nullptr;  // the first row's tile; rows past the end become zeros
};
void repack_dense(const RepackDenseArgs& args, cudaStream_t stream);

// Rows of one expert's MXFP4 matrix into records.
struct RepackMxArgs {
  const std::uint8_t* blocks = nullptr;  // [rows][cols / 32][16]
  const std::uint8_t* scales = nullptr;  // [rows][cols / 32]
  std::int64_t rows = 0;                 // a multiple of 16
  std::int64_t cols = 0;                 // a multiple of 32
  RowOrder order = RowOrder::kNatural;   // natural or kSwiglu
  std::uint8_t* out = nullptr;           // the first row's tile
};
void repack_mx(const RepackMxArgs& args, cudaStream_t stream);

// A vector with one value a row, such as a bias, in the order of the rows.
void reorder_vector(const std::uint16_t* source, std::int64_t size, RowOrder order,
                    std::uint16_t* out, cudaStream_t stream);

// [experts][hidden] to [hidden / 16][experts][16].
void router_by_channel(const std::uint16_t* source, std::int64_t num_experts, std::int64_t hidden,
                       std::uint16_t* out, cudaStream_t stream);

}  // namespace gptoss::cuda
