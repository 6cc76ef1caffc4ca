// One warp's share of a product for few tokens: a 16-row tile of weights, from shared memory, times
// up to 8 * kTokenTiles rows of bf16 activations that lie in shared memory in fragment order.
#pragma once

#include <cstdint>

#include "cuda/device/mxfp4.h"
#include "cuda/layout.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace gptoss::cuda {

// Activations of MXFP4 products in shared memory: rows of `pairs` times 64 bytes, a pair being 32
// columns (two tiles along K). Within a pair lane quarter q finds its fragment of both tiles as 16
// bytes at 16 q: columns 2q, 2q + 1, 2q + 8, 2q + 9, 2q + 16, 2q + 17, 2q + 24, 2q + 25. A row's
// stride is an odd number of 64 bytes, so that two neighbouring rows use all banks.
constexpr int kPairColumns = 32;
constexpr int kPairBytes = 64;

__host__ __device__ constexpr std::uint32_t activation_row_bytes(int num_pairs) {
  return static_cast<std::uint32_t>(num_pairs | 1) * kPairBytes;
}

// Where a column of a row stands in that order.
__host__ __device__ constexpr int fragment_index(int column) {
  const int in_tile = column % 16;
  return column / kPairColumns * kPairColumns + in_tile % 8 / 2 * 8 +
         column % kPairColumns / 16 * 4 + in_tile / 8 * 2 + column % 2;
}

// Share of a product that one warp adds up: 16 rows of weights times kTokens activations of a row
// each (1, or up to 8 or 16). multiply() adds pieces along K; result() gives fragments of
// mma.m16n8k16: acc[t] for tokens 8 t ... 8 t + 7.
template <int kTokens>
constexpr int kTokenTilesOf = (kTokens + 7) / 8;

// Activations of dense products lie in shared memory row by row. Rows are 16 bytes apart modulo
// 128, so that the eight that ldmatrix reads at a time use all banks.
__host__ __device__ constexpr std::uint32_t dense_row_bytes(int columns) {
  return static_cast<std::uint32_t>(columns * 2 + 127) / 128 * 128 + 16;
}

// x[t]: row of token 8 t + lane % 8, from column lane / 8 * 8 on.
template <int kTokens>
class DenseProduct {
 public:
  static constexpr int kTokenTiles = kTokenTilesOf<kTokens>;

  // `weights` in dense tiles, at most kPairs times 32 columns, of which num_pairs are there.
  template <int kPairs>
  __device__ __forceinline__ void multiply(const std::uint8_t* weights, int num_pairs,
                                           const uint4* const (&x)[kTokenTiles], int first_pair) {
    const uint4* tile = reinterpret_cast<const uint4*>(weights) + threadIdx.x % kWarp;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair, tile += 2 * kWarp) {
      if (pair >= num_pairs) break;
      const uint4 first = tile[0];
      const uint4 second = tile[kWarp];
      const std::uint32_t a0[4] = {first.x, first.y, first.z, first.w};
      const std::uint32_t a1[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        std::uint32_t b[4];
        ptx::ldmatrix_x4(b, x[t] + (first_pair + pair) * 4);
        ptx::mma_m16n8k16(acc_[t], a0, b[0], b[1]);
        ptx::mma_m16n8k16(acc_[t], a1, b[2], b[3]);
      }
    }
  }

  // Gives the sums and begins anew.
  __device__ __forceinline__ void result(float (&acc)[kTokenTiles][4]) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        acc[t][i] = acc_[t][i];
        acc_[t][i] = 0.0f;
      }
    }
  }

 private:
  float acc_[kTokenTiles][4] = {};
};

// Activations of MXFP4 products are kept times 2^64 and codes come out times 2^-126, so that sums
// are 2^-62 of their value until result(): far from the upper end of float32, and exact down to
// values of 2^-64.
constexpr int kMxActivationExponent = 64;
constexpr float kMxActivationFactor = 0x1p64f;
constexpr float kMxSumFactor = 0x1p62f;
static_assert(kE2m1Exponent - kMxActivationExponent == 62);

// MXFP4: each block of 32 columns is summed by the tensor cores, then scaled in float32. The scaled
// sums of a piece's blocks 0 and 1, 2 and 3, 4 and 5, 6 and 7 go to four accumulators, which are
// added in pairs: the same additions for any number of tokens.
constexpr int kMxMostRecords = 4;  // of a piece
constexpr int kMxGroups = kMxMostRecords;

__device__ __forceinline__ std::uint32_t scales_of(const std::uint8_t* record, int row) {
  return reinterpret_cast<const std::uint32_t*>(record + kMxCodeBytes)[row];
}

// x[t]: the lane's activations, of token 8 t + lane / 4 (of the one token), at the first column.
template <int kTokens>
class MxProduct {
 public:
  static constexpr int kTokenTiles = kTokenTilesOf<kTokens>;

  template <int kRecords>
  __device__ __forceinline__ void multiply(const std::uint8_t* records, int num_records,
                                           const uint4* const (&x)[kTokenTiles], int first_record) {
    static_assert(kRecords <= kMxMostRecords);
    const int lane = static_cast<int>(threadIdx.x % kWarp);
#pragma unroll
    for (int r = 0; r < kRecords; ++r, records += kMxRecordBytes) {
      if (r >= num_records) break;
      const uint4 codes = reinterpret_cast<const uint4*>(records)[lane];
      const std::uint32_t scales = scales_of(records, lane / 4);
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        std::uint32_t a0[4];
        std::uint32_t a1[4];
        expand_e2m1(a0, a1, block == 0 ? codes.x : codes.z, block == 0 ? codes.y : codes.w);
        const float scale = scale_e8m0(scales, block);
        const float scale8 = scale_e8m0(scales, 2 + block);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          const uint4 b = x[t][((first_record + r) * 2 + block) * 4];
          float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          ptx::mma_m16n8k16(sum, a0, b.x, b.y);
          ptx::mma_m16n8k16(sum, a1, b.z, b.w);
          float (&acc)[4] = acc_[t][r];
          acc[0] = fmaf(sum[0], scale, acc[0]);
          acc[1] = fmaf(sum[1], scale, acc[1]);
          acc[2] = fmaf(sum[2], scale8, acc[2]);
          acc[3] = fmaf(sum[3], scale8, acc[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void result(float (&acc)[kTokenTiles][4]) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        acc[t][i] =
            ((acc_[t][0][i] + acc_[t][1][i]) + (acc_[t][2][i] + acc_[t][3][i])) * kMxSumFactor;
#pragma unroll
        for (int group = 0; group < kMxGroups; ++group) acc_[t][group][i] = 0.0f;
      }
    }
  }

 private:
  float acc_[kTokenTiles][kMxGroups][4] = {};
};

// One token: the tensor cores' eight columns are the blocks of a piece instead, column n holding
// block n of the activations and zeros elsewhere. One accumulator takes all of them, and a lane
// scales the four sums that it has: rows g and g + 8 of blocks 2q and 2q + 1, whose four scales are
// one word of record q. A quarter of the work after the product; and the activations stay in
// registers from tile to tile where a warp has one piece of each.
template <>
class MxProduct<1> {
 public:
  static constexpr int kTokenTiles = 1;

  template <int kRecords>
  __device__ __forceinline__ void multiply(const std::uint8_t* records, int num_records,
                                           const uint4* const (&x)[1], int first_record) {
    const uint4* from = x[0] + first_record * 8;
    if (from != loaded_) load(from, num_records);
    static_assert(kRecords <= kMxMostRecords);
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    float sums[2][4] = {};  // of alternate records: a product does not wait for the one before
#pragma unroll
    for (int r = 0; r < kRecords; ++r) {
      if (r >= num_records) break;
      const uint4 codes = reinterpret_cast<const uint4*>(records + r * kMxRecordBytes)[lane];
      float (&sum)[4] = sums[r % 2];
      std::uint32_t a0[4];
      std::uint32_t a1[4];
      expand_e2m1(a0, a1, codes.x, codes.y);
      ptx::mma_m16n8k16(sum, a0, x_[2 * r].x, x_[2 * r].y);
      ptx::mma_m16n8k16(sum, a1, x_[2 * r].z, x_[2 * r].w);
      expand_e2m1(a0, a1, codes.z, codes.w);
      ptx::mma_m16n8k16(sum, a0, x_[2 * r + 1].x, x_[2 * r + 1].y);
      ptx::mma_m16n8k16(sum, a1, x_[2 * r + 1].z, x_[2 * r + 1].w);
    }
    float sum[4];  // a column is zero in one of the two
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = sums[0][i] + sums[1][i];
    const int record = lane % 4;
    if (record < num_records) {
      const std::uint32_t scales = scales_of(records + record * kMxRecordBytes, lane / 4);
      low_ = fmaf(sum[0], scale_e8m0(scales, 0), low_);
      low_ = fmaf(sum[1], scale_e8m0(scales, 1), low_);
      high_ = fmaf(sum[2], scale_e8m0(scales, 2), high_);
      high_ = fmaf(sum[3], scale_e8m0(scales, 3), high_);
    }
  }

  // Every lane of a quarter gets token 0's sums; the other tokens' are not there.
  __device__ __forceinline__ void result(float (&acc)[1][4]) {
    float low = low_ + __shfl_xor_sync(0xffffffffu, low_, 1);
    float high = high_ + __shfl_xor_sync(0xffffffffu, high_, 1);
    low += __shfl_xor_sync(0xffffffffu, low, 2);
    high += __shfl_xor_sync(0xffffffffu, high, 2);
    acc[0][0] = low * kMxSumFactor;
    acc[0][1] = 0.0f;
    acc[0][2] = high * kMxSumFactor;
    acc[0][3] = 0.0f;
    low_ = 0.0f;
    high_ = 0.0f;
  }

  // Shared memory has other activations now.
  __device__ __forceinline__ void forget() { loaded_ = nullptr; }

 private:
  // `from` is the lane's part of the piece's first block.
  __device__ __forceinline__ void load(const uint4* from, int num_records) {
    loaded_ = from;
    const int column = static_cast<int>(threadIdx.x % kWarp) / 4;
    uint4 mine{0, 0, 0, 0};
    if (column < 2 * num_records) mine = from[column * 4];
#pragma unroll
    for (int block = 0; block < 2 * kMxMostRecords; ++block) {
      x_[block] = block == column ? mine : uint4{0, 0, 0, 0};
    }
  }

  const uint4* loaded_ = nullptr;
  uint4 x_[2 * kMxMostRecords];
  float low_ = 0.0f;
  float high_ = 0.0f;
};

}  // namespace gptoss::cuda
