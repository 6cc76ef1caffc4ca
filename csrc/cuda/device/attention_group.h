// A warp attends to a group of 32 keys with up to 16 query heads: scores and values on mma.sync
// (heads along M), online softmax in float32, weights rounded to bf16 and summed as rounded.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/attention_keys.h"
#include "cuda/device/softmax.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace gptoss::cuda {

constexpr int kHeadTile = 16;  // query heads of a tile: rows of a fragment
constexpr int kDimTiles = static_cast<int>(kHeadDim) / 8;

// A warp's share of the softmax: kHalves of the 16 rows of a fragment are in use.
template <int kHalves>
struct WarpSoftmax {
  float out[kDimTiles][4] = {};
  float max[kHalves];
  float sum[kHalves] = {};  // of this lane's columns

  __device__ WarpSoftmax() {
    for (float& value : max) value = kMinusInfinity;
  }
};

// The fragments of num_heads heads of a row, from the first one's 64 on.
template <int kHalves>
__device__ __forceinline__ void load_query(const __nv_bfloat16* from, int num_heads, int lane,
                                           std::uint32_t (&q)[4][4]) {
  constexpr int kDim = static_cast<int>(kHeadDim);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int head = lane / 4 + i % 2 * 8;
      const int dim = k * 16 + i / 2 * 8 + lane % 4 * 2;
      const bool there = i % 2 < kHalves && head < num_heads;
      q[k][i] = there ? *reinterpret_cast<const std::uint32_t*>(from + head * kDim + dim) : 0u;
    }
  }
}

// One group of keys, copied to `stage`, of which the row sees [first, end).
template <int kHalves>
__device__ __forceinline__ void attend_group(const std::uint32_t (&q)[4][4],
                                             const std::uint8_t* stage, int begin, int first,
                                             int end, int lane, WarpSoftmax<kHalves>& state) {
  constexpr int kKeyTiles = kKeyGroup / 8;
  float scores[kKeyTiles][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      std::uint32_t k[4];
      const int chunk = (half * 4 + lane / 8) ^ (lane % 8);
      ptx::ldmatrix_x4(k, stage + (tile * 8 + lane % 8) * kKeyBytes + chunk * kCopyBytes);
      ptx::mma_m16n8k16(scores[tile], q[2 * half], k[0], k[1]);
      ptx::mma_m16n8k16(scores[tile], q[2 * half + 1], k[2], k[3]);
    }
  }
  if (begin < first || begin + kKeyGroup > end) {
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = begin + tile * 8 + lane % 4 * 2 + i % 2;
        if (key < first || key >= end) scores[tile][i] = kMinusInfinity;
      }
    }
  }
  std::uint32_t weights[kKeyTiles][2] = {};
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    float top = kMinusInfinity;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      top = fmaxf(top, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    const float old_max = state.max[half];
    state.max[half] = fmaxf(old_max, quad_max(top) * kScoreScale);
    const float base = exponent_base(state.max[half]);
    const float kept = ptx::exp2_approx(old_max - base);
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      const float w0 = ptx::exp2_approx(fmaf(scores[tile][2 * half], kScoreScale, -base));
      const float w1 = ptx::exp2_approx(fmaf(scores[tile][2 * half + 1], kScoreScale, -base));
      weights[tile][half] = pack_bf16x2(w0, w1);
      sum += __uint_as_float(weights[tile][half] << 16) +
             __uint_as_float(weights[tile][half] & 0xffff0000u);
    }
    state.sum[half] = state.sum[half] * kept + sum;
#pragma unroll
    for (int tile = 0; tile < kDimTiles; ++tile) {
      state.out[tile][2 * half] *= kept;
      state.out[tile][2 * half + 1] *= kept;
    }
  }
  const std::uint8_t* values = stage + kKeyGroupBytes;
#pragma unroll
  for (int step = 0; step < kKeyGroup / 16; ++step) {
    const std::uint32_t a[4] = {weights[2 * step][0], weights[2 * step][1],
                                weights[2 * step + 1][0], weights[2 * step + 1][1]};
#pragma unroll
    for (int pair = 0; pair < kDimTiles / 2; ++pair) {
      std::uint32_t v[4];
      const int key = step * 16 + lane % 16;
      const int chunk = (pair * 2 + lane / 16) ^ (key % 8);
      ptx::ldmatrix_x4_trans(v, values + key * kKeyBytes + chunk * kCopyBytes);
      ptx::mma_m16n8k16(state.out[2 * pair], a, v[0], v[1]);
      ptx::mma_m16n8k16(state.out[2 * pair + 1], a, v[2], v[3]);
    }
  }
}

// A warp attends to groups 0 ... num_groups - 1, which begin at group_begin(i), of the keys before
// `end`, through a ring of kStages groups. Old keys are fetched before the kernels that this one
// depends on have ended, the query (query_from as in load_query) and new keys after.
template <int kHalves, int kStages, typename GroupBegin>
__device__ __forceinline__ WarpSoftmax<kHalves> attend_groups(
    const Keys& keys, int num_groups, const GroupBegin& group_begin, int end,
    const __nv_bfloat16* query_from, int num_heads, std::uint8_t* ring, int lane) {
  constexpr int kStageBytes = 2 * kKeyGroupBytes;
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (i < num_groups) copy_group<Part::kOld>(keys, group_begin(i), ring + i * kStageBytes, lane);
    ptx::cp_async_commit();
  }
  ptx::wait_for_dependencies();
  std::uint32_t q[4][4];
  load_query<kHalves>(query_from, num_heads, lane, q);
  const int staged = min(kStages, num_groups);
  if (staged > 0 && group_begin(staged - 1) + kKeyGroup > keys.old_end) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      if (i < staged) copy_group<Part::kNew>(keys, group_begin(i), ring + i * kStageBytes, lane);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }
  WarpSoftmax<kHalves> state;
  for (int i = 0; i < num_groups; ++i) {
    ptx::cp_async_wait<kStages - 1>();
    __syncwarp();  // the other lanes' copies
    std::uint8_t* stage = ring + i % kStages * kStageBytes;
    attend_group<kHalves>(q, stage, group_begin(i), keys.first, end, lane, state);
    __syncwarp();  // all have read the stage before it is filled again
    if (i + kStages < num_groups) {
      copy_group<Part::kAll>(keys, group_begin(i + kStages), stage, lane);
    }
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<0>();
  __syncwarp();
  return state;
}

}  // namespace gptoss::cuda
