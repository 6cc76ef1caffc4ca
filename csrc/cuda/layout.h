// Weights as they lie in device memory: cut into the tiles that the tensor cores' A operand wants,
// so that a warp reads its fragments as consecutive bytes, once, with no shuffling. The same bytes
// serve mma.sync and wgmma with A in registers; products are out^T = weight * x^T, weight rows
// along M and tokens along N.
//
// Fragment of lane l of a 16 x 16 tile, g = l / 4, q = l % 4 (PTX ISA, mma.m16n8k16, matrix A):
//   a0 = (row g,     k 2q, 2q + 1)      a1 = (row g + 8, k 2q, 2q + 1)
//   a2 = (row g,     k 2q + 8, 2q + 9)  a3 = (row g + 8, k 2q + 8, 2q + 9)
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/mxfp4.h"

namespace gptoss::cuda {

constexpr int kTileRows = 16;
constexpr int kTileK = 16;
constexpr int kWarp = 32;
constexpr int kDenseTileBytes = kTileRows * kTileK * 2;  // a lane's 8 bf16 are 16 bytes

constexpr std::int64_t tiles_along(std::int64_t size, std::int64_t tile) {
  return (size + tile - 1) / tile;
}

// bf16 matrix: [row_tiles][k_tiles][32 lanes][a0 a1 a2 a3], rows and columns past the end are 0.
struct DenseTiles {
  const std::uint8_t* data = nullptr;
  std::int64_t rows = 0;  // of the matrix, before padding to 16
  std::int64_t cols = 0;

  __host__ __device__ std::int64_t row_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  __host__ __device__ std::int64_t k_tiles() const { return (cols + kTileK - 1) / kTileK; }
  __host__ __device__ std::int64_t num_bytes() const {
    return row_tiles() * k_tiles() * kDenseTileBytes;
  }
};

// MXFP4 matrices, one an expert: [experts][row_tiles][k_chunks] records of 544 bytes, 16 rows by
// 64 columns each:
//   codes   [32 lanes][4 words]: word j is the lane's fragment of columns 16 j ... 16 j + 15
//   scales  [8 row pairs g][4]: row g blocks 0 and 1, row g + 8 blocks 0 and 1 (e8m0 bytes)
// Columns past the end have code 0 and scale 127.
//
// A word's pairs a0 a1 a2 a3, first element of each in the low half and second in the high half,
// are bf16 numbers of 2^-126 times their value where they stand under kMxCode: sign, exponent,
// exponent, mantissa at bits 15, 8, 7, 6 of a half. Turned left by mx_turn the pairs a0, a1 and a2
// do. No fourth turn is left free, so the a3 of words 0 and 1 (and of 2 and 3) share the bits that
// remain of both: a third word of the bits kMxShared of the second, turned by kMxSharedTurn, and
// the others of the first, which mx_turn_of_shared brings under kMxCode. 32 instructions for the
// lane's 32 codes, the fewest that a search over turns, shifts, byte permutations and selections
// has found.
constexpr std::uint32_t kMxCode = 0x81c081c0u;
__host__ __device__ constexpr int mx_turn(int pair) {
  return pair == 0 ? 0 : pair == 1 ? 6 : 28;
}
constexpr std::uint32_t kMxShared = 0x180c180cu;
constexpr int kMxSharedTurn = 30;
__host__ __device__ constexpr int mx_turn_of_shared(int word) {
  return word == 0 ? 4 : 10;
}

// Where the bit `bit` of kMxCode of pair a_`pair` of word `word` stands in the two words.
struct MxBit {
  int word;
  int bit;
};
__host__ __device__ constexpr MxBit mx_bit(int word, int pair, int bit) {
  if (pair < 3) return {word, (bit - mx_turn(pair)) & 31};
  const int at = (bit - mx_turn_of_shared(word)) & 31;
  if ((kMxShared >> at & 1) != 0) return {1, (at - kMxSharedTurn) & 31};
  return {0, at};
}
constexpr bool mx_bits_fill_both_words() {
  std::uint32_t taken[2] = {};
  for (int i = 0; i < 8 * 32; ++i) {
    if ((kMxCode >> i % 32 & 1) == 0) continue;
    const MxBit at = mx_bit(i / 32 % 2, i / 64, i % 32);
    taken[at.word] |= 1u << at.bit;
  }
  return taken[0] == 0xffffffffu && taken[1] == 0xffffffffu;
}
static_assert(mx_bits_fill_both_words());

constexpr int kMxChunk = 64;
constexpr int kMxCodeBytes = kTileRows * kMxChunk / 2;               // 512
constexpr int kMxScaleBytes = kTileRows * kMxChunk / int{kMxBlock};  // 32
constexpr int kMxRecordBytes = kMxCodeBytes + kMxScaleBytes;         // 544
static_assert(kMxRecordBytes % 16 == 0);

struct MxTiles {
  const std::uint8_t* data = nullptr;
  std::int64_t num_experts = 0;
  std::int64_t rows = 0;  // a multiple of 16
  std::int64_t cols = 0;

  __host__ __device__ std::int64_t row_tiles() const { return rows / kTileRows; }
  __host__ __device__ std::int64_t k_chunks() const { return (cols + kMxChunk - 1) / kMxChunk; }
  __host__ __device__ std::int64_t expert_bytes() const {
    return row_tiles() * k_chunks() * kMxRecordBytes;
  }
  __host__ __device__ std::int64_t num_bytes() const { return num_experts * expert_bytes(); }
};

// Which row of a checkpoint's matrix stands in row `row` of the tiled one. Biases are reordered the
// same way. Chosen so that one thread's fragment (rows g and g + 8) holds what belongs together.
enum class RowOrder {
  kNatural,
  kRope,    // tile t of a head: rows 0-7 dims 8 t ... 8 t + 7, rows 8-15 the same dims + 32
  kSwiglu,  // tile t: rows 0-7 the gates, rows 8-15 the ups of outputs 8 t ... 8 t + 7
};

__host__ __device__ constexpr std::int64_t source_row(RowOrder order, std::int64_t row) {
  const std::int64_t tile = row / kTileRows;
  const std::int64_t in_tile = row % kTileRows;
  switch (order) {
    case RowOrder::kRope: {
      constexpr std::int64_t kTilesPerHead = 64 / kTileRows;
      const std::int64_t dim = tile % kTilesPerHead * 8 + in_tile % 8 + (in_tile >= 8 ? 32 : 0);
      return tile / kTilesPerHead * 64 + dim;
    }
    case RowOrder::kSwiglu:
      return tile * kTileRows + in_tile % 8 * 2 + (in_tile >= 8 ? 1 : 0);
    case RowOrder::kNatural:
      break;
  }
  return row;
}

}  // namespace gptoss::cuda
