// A block's stream of weight tiles for few tokens, and the sum of its warps' shares.
//
// The block multiplies one 16-row tile after another ("units"); the tile's columns are cut into
// pieces, piece p belonging to warp p % kWarps, so that the block reads consecutive bytes. A warp
// adds its pieces in ascending order and the shares of the warps are added in ascending order:
// the order of additions depends on the shape of the matrix and on nothing else.
#pragma once

#include <cstdint>

#include "cuda/device/small_product.h"
#include "cuda/device/weight_ring.h"
#include "cuda/layout.h"

namespace gptoss::cuda {

// What a tile is made of along K. A quantum is the least that a piece holds.
struct DenseQuanta {
  static constexpr int kColumns = kPairColumns;
  static constexpr int kBytes = 2 * kDenseTileBytes;
  template <int kTokens>
  using Product = DenseProduct<kTokens>;
};

struct MxQuanta {
  static constexpr int kColumns = kMxChunk;
  static constexpr int kBytes = kMxRecordBytes;
  template <int kTokens>
  using Product = MxProduct<kTokens>;
};

template <class Quanta, int kWarpsInBlock, int kQuantaInPiece, int kStages, RingCopy kCopy>
class TileStream {
 public:
  static constexpr int kWarps = kWarpsInBlock;
  template <int kTokens>
  using Product = typename Quanta::template Product<kTokens>;
  static constexpr std::uint32_t kPieceBytes = kQuantaInPiece * Quanta::kBytes;
  static_assert(kPieceBytes % 16 == 0);
  static constexpr std::uint32_t kBarrierBytes = kWarps * kStages * 8;
  static constexpr std::uint32_t kRingBytes = kWarps * kStages * kPieceBytes;

  // `barriers` kBarrierBytes, `ring` kRingBytes, aligned to 16; `columns` of the matrix.
  __device__ TileStream(std::uint8_t* barriers, std::uint8_t* ring, int columns)
      : warp_(static_cast<int>(threadIdx.x) / kWarp),
        num_quanta_((columns + Quanta::kColumns - 1) / Quanta::kColumns),
        tile_bytes_(static_cast<std::uint32_t>(num_quanta_ * Quanta::kBytes)),
        ring_(ring + warp_ * kStages * kPieceBytes, kPieceBytes,
              reinterpret_cast<std::uint64_t*>(barriers) + warp_ * kStages) {}

  // Asks for the first stages of `num_units` tiles; locate() is the address of the next one. All
  // units of an earlier start have been multiplied.
  template <class Locate>
  __device__ void start(int num_units, Locate& locate) {
    unasked_ = first_byte() < tile_bytes_ ? num_units : 0;
    if (unasked_ > 0) tile_ = locate();
    fill_at_ = first_byte();
#pragma unroll 1
    for (int stage = 0; stage < kStages; ++stage) fill_next(locate);
  }

  // acc = this warp's share of the next unit.
  template <int kTokens, class Locate>
  __device__ __forceinline__ void multiply(Product<kTokens>& product,
                                           float (&acc)[kTokenTilesOf<kTokens>][4],
                                           const uint4* const (&x)[kTokenTilesOf<kTokens>],
                                           Locate& locate) {
#pragma unroll 1
    for (int first = warp_ * kQuantaInPiece; first < num_quanta_;
         first += kWarps * kQuantaInPiece) {
      const std::uint8_t* stage = ring_.wait();
      if (num_quanta_ - first >= kQuantaInPiece) {
        product.template multiply<kQuantaInPiece>(stage, kQuantaInPiece, x, first);
      } else {
        product.template multiply<kQuantaInPiece>(stage, num_quanta_ - first, x, first);
      }
      ring_.release();
      fill_next(locate);
    }
    product.result(acc);
  }

 private:
  __device__ std::uint32_t first_byte() const {
    return static_cast<std::uint32_t>(warp_) * kPieceBytes;
  }

  template <class Locate>
  __device__ __forceinline__ void fill_next(Locate& locate) {
    if (unasked_ <= 0) {
      ring_.fill(nullptr, 0);
      return;
    }
    ring_.fill(tile_ + fill_at_, min(kPieceBytes, tile_bytes_ - fill_at_));
    fill_at_ += kWarps * kPieceBytes;
    if (fill_at_ >= tile_bytes_) {
      fill_at_ = first_byte();
      if (--unasked_ > 0) tile_ = locate();
    }
  }

  int warp_;
  int num_quanta_;
  std::uint32_t tile_bytes_;
  int unasked_ = 0;  // units not wholly asked for
  std::uint32_t fill_at_ = 0;
  const std::uint8_t* tile_ = nullptr;
  WeightRing<kCopy, kStages> ring_;
};

// Shares of the warps of some columns (a unit's tokens): [columns][kWarps][16 rows] float32.
template <int kWarps, int kTokenTiles>
__device__ __forceinline__ void store_shares(float* shares, int first_column, int num_columns,
                                             const float (&acc)[kTokenTiles][4]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = static_cast<int>(threadIdx.x % kWarp) / 4;
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 8 * t + 2 * static_cast<int>(threadIdx.x % 4) + i;
      if (column < num_columns) {
        float* at = shares + ((first_column + column) * kWarps + warp) * kTileRows + row;
        at[0] = acc[t][i];
        at[8] = acc[t][2 + i];
      }
    }
  }
}

template <int kWarps>
__device__ __forceinline__ float sum_shares(const float* shares, int column, int row) {
  const float* at = shares + column * kWarps * kTileRows + row;
  float sum = at[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) sum += at[warp * kTileRows];
  return sum;
}

// Where lane's activations of tokens lane / 4, lane / 4 + 8 ... begin; lanes past the last token
// read the last one's, and their columns are passed over by store_shares.
template <int kTokenTiles, class RowOf>
__device__ __forceinline__ void point_at_rows(const uint4* (&x)[kTokenTiles],
                                              const std::uint8_t* activations,
                                              std::uint32_t row_bytes, int num_tokens,
                                              const RowOf& row_of) {
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
    const int token = min(8 * t + static_cast<int>(threadIdx.x % kWarp) / 4, num_tokens - 1);
    x[t] =
        reinterpret_cast<const uint4*>(activations + row_of(token) * row_bytes) + threadIdx.x % 4;
  }
}

}  // namespace gptoss::cuda
