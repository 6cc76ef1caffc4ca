// How the kernels of the small regime cut matrices and shared memory.
//
// Measured on an H200: a product streams at 4.4 TB/s with 40 KB of an SM under way. What the ring
// holds beyond that is what a block has at hand when its inputs are there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/small_rows.h"
#include "cuda/device/tile_stream.h"

namespace gptoss::cuda {

constexpr int kDenseWarps = 15;  // 2880 columns are 45 pieces, 4096 are 64
constexpr int kDensePiece = 2;   // quanta: 64 columns, 2 KB
constexpr int kDenseStages = 3;  // 2 with more than 8 rows, to leave room for those
constexpr int kMxWarps = 12;     // 2880 columns are 12 pieces
constexpr int kMxPiece = 4;      // 256 columns, 2.1 KB
constexpr int kMxStages = 3;
// Beside the warps that multiply experts' weights, those that finish what they have multiplied.
constexpr int kFinishWarps = 4;
constexpr int kExpertGroups = 4;  // of warps that multiply, each a tile at a time
constexpr int kExpertFillWarp = kMxWarps + kFinishWarps;  // and the one that asks for weights
constexpr int kExpertThreads = (kExpertFillWarp + 1) * kWarp;

template <int kTokens, RingCopy kCopy>
using DenseStream = TileStream<DenseQuanta, kDenseWarps, kDensePiece,
                               kTokens <= 8 ? kDenseStages : kDenseStages - 1, kCopy>;

// Columns (a unit's token) whose warps' shares wait in shared memory to be summed together.
template <int kTokens>
constexpr int kDenseShareColumns = kTokens == 1   ? 4
                                   : kTokens <= 8 ? 24
                                                  : 32;

// Dynamic shared memory: ring, barriers, warps' shares, activations.
template <class Stream, int kShareColumns>
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
  static constexpr std::size_t bytes(int num_rows, std::int64_t columns) {
    return kActivations +
           static_cast<std::size_t>(num_rows) * dense_row_bytes(static_cast<int>(columns));
  }
};

// Shared memory of a dense product's block for a step of `num_rows` rows.
template <int kTokens, int kShareColumns>
std::size_t dense_smem_bytes(int num_rows, std::int64_t columns) {
  return SmallSmem<DenseStream<kTokens, RingCopy::kBulk>, kShareColumns>::bytes(num_rows, columns);
}

inline std::size_t dense_smem_bytes(int num_rows, std::int64_t columns) {
  const int rows = num_rows < kGroupRows ? num_rows : kGroupRows;
  if (rows == 1) return dense_smem_bytes<1, kDenseShareColumns<1>>(rows, columns);
  if (rows <= 8) return dense_smem_bytes<8, kDenseShareColumns<8>>(rows, columns);
  return dense_smem_bytes<kGroupRows, kDenseShareColumns<kGroupRows>>(rows, columns);
}

// The rows' sums of squares, where a product lies behind a norm: after the activations.
inline std::size_t squares_bytes(int num_rows, std::int64_t hidden) {
  const int rows = num_rows < kGroupRows ? num_rows : kGroupRows;
  return static_cast<std::size_t>(rows * tiles_along(hidden, kTileRows)) * sizeof(float);
}

// Units of work of a block where `total` are dealt out to the grid in turn.
__device__ __forceinline__ int units_of_block(int total) {
  return (total - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) /
         static_cast<int>(gridDim.x);
}

// Numbers of a block's first tiles that its epilogue needs, in shared memory before they are
// needed: from device memory they would cost a microsecond at the end of every kernel.
constexpr int kStagedUnits = 8;
struct StagedVector {
  float values[kStagedUnits * kTileRows];

  __device__ void load(const __nv_bfloat16* from, int num_units) {
    for (int i = static_cast<int>(threadIdx.x); i < min(num_units, kStagedUnits) * kTileRows;
         i += static_cast<int>(blockDim.x)) {
      values[i] = to_float(from[channel(i / kTileRows, i % kTileRows)]);
    }
  }
  __device__ float of(const __nv_bfloat16* from, int unit, int row) const {
    return unit < kStagedUnits ? values[unit * kTileRows + row]
                               : to_float(from[channel(unit, row)]);
  }
  __device__ static int tile(int unit) {
    return static_cast<int>(blockIdx.x) + unit * static_cast<int>(gridDim.x);
  }
  __device__ static int channel(int unit, int row) { return tile(unit) * kTileRows + row; }
};

// Tiles of a matrix dealt out to blocks in turn: the address of the block's next.
struct TileLocator {
  const std::uint8_t* next;
  std::int64_t stride;

  __device__ TileLocator(const std::uint8_t* data, std::int64_t tile_bytes)
      : next(data + blockIdx.x * tile_bytes), stride(gridDim.x * tile_bytes) {}
  __device__ const std::uint8_t* operator()() {
    const std::uint8_t* at = next;
    next += stride;
    return at;
  }
};

// Multiplies units until their columns fill the shares, for products whose units all have
// `num_rows` columns: finish(first_unit, num_units) follows a barrier, with column
// unit * num_rows + row.
// prepare() comes before the first barrier.
template <int kTokens, int kShareColumns, class Stream, class Locate, class Prepare, class Finish>
__device__ __forceinline__ void multiply_units(Stream& stream, float* shares,
                                               const std::uint8_t* activations,
                                               std::uint32_t row_bytes, int num_rows, int num_units,
                                               Locate& locate, const Prepare& prepare,
                                               const Finish& finish) {
  constexpr int kTokenTiles = kTokenTilesOf<kTokens>;
  const uint4* x[kTokenTiles];
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
    const int token = min(8 * t + static_cast<int>(threadIdx.x % 8), num_rows - 1);
    x[t] =
        reinterpret_cast<const uint4*>(activations + token * row_bytes) + threadIdx.x % kWarp / 8;
  }
  typename Stream::template Product<kTokens> product;
  const int units_at_once = max(1, kShareColumns / num_rows);
  for (int first = 0; first < num_units; first += units_at_once) {
    const int count = min(units_at_once, num_units - first);
    for (int unit = 0; unit < count; ++unit) {
      float acc[kTokenTiles][4];
      stream.template multiply<kTokens>(product, acc, x, locate);
      store_shares<Stream::kWarps, kTokenTiles>(shares, unit * num_rows, num_rows, acc);
    }
    if (first == 0) prepare();
    __syncthreads();  // the shares, before they are summed
    finish(first, count);
    __syncthreads();  // the sums, before the shares are written again
  }
}

}  // namespace gptoss::cuda
