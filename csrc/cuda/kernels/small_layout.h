// How the kernels of the small regime cut matrices and shared memory.
//
// Measured on an H200 (benchmarks/lab/cuda_small): a product streams at 4.4 TB/s with 40 KB of an
// SM under way; what a ring holds beyond that is what the next kernel has before its inputs are
// there, and two kernels share an SM only with at most 110 KB each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/small_rows.h"
#include "cuda/device/tile_stream.h"

namespace gptoss::cuda {

constexpr int kDenseWarps = 15;  // 2880 columns are 45 pieces, 4096 are 64
constexpr int kDensePiece = 2;   // quanta: 64 columns, 2 KB
constexpr int kDenseStages = 3;  // 2 with more than 8 rows, to leave room for those
constexpr int kMxWarps = 15;
constexpr int kMxPiece = 3;  // 192 columns, 1.6 KB
constexpr int kMxStages = 3;

template <int kTokens, RingCopy kCopy>
using DenseStream = TileStream<DenseQuanta, kDenseWarps, kDensePiece,
                               kTokens <= 8 ? kDenseStages : kDenseStages - 1, kCopy>;
template <RingCopy kCopy>
using MxStream = TileStream<MxQuanta, kMxWarps, kMxPiece, kMxStages, kCopy>;

// Dynamic shared memory: ring, barriers, warps' shares, activations.
template <class Stream>
struct SmallSmem {
  std::uint8_t* ring;
  std::uint8_t* barriers;
  float* shares;  // [kShareColumns][kWarps][16]
  std::uint8_t* activations;

  static constexpr std::uint32_t kBarriers = Stream::kRingBytes;
  static constexpr std::uint32_t kShares = kBarriers + (Stream::kBarrierBytes + 127) / 128 * 128;
  static constexpr std::uint32_t kActivations =
      kShares + kShareColumns * Stream::kWarps * kTileRows * 4;

  __device__ explicit SmallSmem(std::uint8_t* base)
      : ring(base),
        barriers(base + kBarriers),
        shares(reinterpret_cast<float*>(base + kShares)),
        activations(base + kActivations) {}
  static constexpr std::size_t bytes(int num_rows, int num_pairs) {
    return kActivations + static_cast<std::size_t>(num_rows) * activation_row_bytes(num_pairs);
  }
};

// Shared memory of a dense product's block for a step of `num_rows` rows.
inline std::size_t dense_smem_bytes(int num_rows, std::int64_t columns) {
  const int num_pairs = static_cast<int>(tiles_along(columns, kPairColumns));
  if (num_rows <= 8) return SmallSmem<DenseStream<8, RingCopy::kBulk>>::bytes(num_rows, num_pairs);
  return SmallSmem<DenseStream<kGroupRows, RingCopy::kBulk>>::bytes(kGroupRows, num_pairs);
}

inline std::size_t mx_smem_bytes(int num_rows, std::int64_t columns) {
  return SmallSmem<MxStream<RingCopy::kBulk>>::bytes(
      num_rows < kGroupRows ? num_rows : kGroupRows,
      2 * static_cast<int>(tiles_along(columns, kMxChunk)));
}

// Units of work of a block where `total` are dealt out to the grid in turn.
__device__ __forceinline__ int units_of_block(int total) {
  return (total - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) /
         static_cast<int>(gridDim.x);
}

// Tiles of a matrix dealt out to blocks in turn: the address of the block's unit-th.
struct TileLocator {
  const std::uint8_t* first;
  std::int64_t stride;

  __device__ TileLocator(const std::uint8_t* data, std::int64_t tile_bytes)
      : first(data + blockIdx.x * tile_bytes), stride(gridDim.x * tile_bytes) {}
  __device__ const std::uint8_t* operator()(int unit) const { return first + unit * stride; }
};

// Multiplies units until their columns fill the shares, for products whose units all have
// `num_rows` columns: finish(first_unit, num_units) follows a barrier, with column
// unit * num_rows + row.
template <int kTokens, class Stream, class Locate, class Finish>
__device__ __forceinline__ void multiply_units(Stream& stream, float* shares,
                                               const std::uint8_t* activations,
                                               std::uint32_t row_bytes, int num_rows, int num_units,
                                               Locate& locate, const Finish& finish) {
  constexpr int kTokenTiles = kTokenTilesOf<kTokens>;
  const uint4* x[kTokenTiles];
  point_at_rows<kTokenTiles>(x, activations, row_bytes, num_rows, [](int row) { return row; });
  const int units_at_once = max(1, kShareColumns / num_rows);
  for (int first = 0; first < num_units; first += units_at_once) {
    const int count = min(units_at_once, num_units - first);
    for (int unit = 0; unit < count; ++unit) {
      float acc[kTokenTiles][4];
      stream.template multiply<kTokens>(acc, x, locate);
      store_shares<Stream::kWarps, kTokenTiles>(shares, unit * num_rows, num_rows, acc);
    }
    __syncthreads();  // the shares, before they are summed
    finish(first, count);
    __syncthreads();  // the sums, before the shares are written again
  }
}

}  // namespace gptoss::cuda
