// Each row's experts, found by every block for itself from the router's sums: a few hundred bytes,
// less than another kernel would cost.
#pragma once

#include <cstdint>

#include "cuda/device/reduce.h"
#include "cuda/device/small_rows.h"
#include "cuda/kernels/small_kernels.h"

namespace gptoss::cuda {

// Sums are kept times this. With hidden up to 2^16 (4096 tiles) and partial sums below
// kRouterLimit nothing overflows; a unit is 4e-9, against logits of order 1.
constexpr float kRouterUnits = 0x1p28f;
constexpr float kRouterLimit = 0x1p22f;

constexpr int kMaxExpertsPerLane = 8;
constexpr int kMaxRoutedExperts = kWarp * kMaxExpertsPerLane;
constexpr int kMaxExpertsPerToken = 16;

// Of a group of at most kGroupRows rows; lies in shared memory.
struct Routing {
  int num_active;                                        // experts with a row
  std::int16_t active[kMaxRoutedExperts];                // ascending
  std::uint16_t rows[kMaxRoutedExperts];                 // of expert: bit i for row i of the group
  std::int16_t expert[kGroupRows][kMaxExpertsPerToken];  // a row's, ascending
  float weight[kGroupRows][kMaxExpertsPerToken];
  float factor[kGroupRows];  // 1 / rms
  float bias[kMaxRoutedExperts];

  __device__ int num_rows(int active_index) const { return __popc(rows[active[active_index]]); }
  // The group's row that is `token` among those of an expert.
  __device__ int row_of(int expert_id, int token) const {
    unsigned bits = rows[expert_id];
#pragma unroll 1
    for (; token > 0; --token) bits &= bits - 1;
    return __ffs(static_cast<int>(bits)) - 1;
  }
  // Which of the row's experts it is.
  __device__ int choice_of(int row, int expert_id) const {
    int choice = 0;
#pragma unroll 1
    while (expert[row][choice] != expert_id) ++choice;
    return choice;
  }
};

// Before the kernels before this one have ended: the router's bias, which no cache may have.
__device__ __forceinline__ void prepare_routing(const RoutingArgs& args, Routing& routing) {
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts;
       expert += static_cast<int>(blockDim.x)) {
    routing.bias[expert] = to_float(args.bias[expert]);
  }
  __syncthreads();  // the bias, before it is read
}

// Larger keys for larger logits, the largest for NaN, never 0.
__device__ __forceinline__ unsigned rank_key(float logit) {
  const unsigned bits = __float_as_uint(logit);
  if (logit != logit) return 0xffffffffu;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The row's logits, kMaxExpertsPerLane consecutive experts a lane (fewer where there are fewer).
struct RowLogits {
  float value[kMaxExpertsPerLane];
  int per_lane;

  __device__ float of(int expert) const {
    float found = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxExpertsPerLane; ++i) {
      if (i >= per_lane) break;
      const float there = __shfl_sync(kAllLanes, value[i], expert / per_lane);
      if (expert % per_lane == i) found = there;
    }
    return found;
  }
};

// Lane i < k gets the id of the i-th largest logit, ties to the lower id.
__device__ __forceinline__ int choose_experts(const RowLogits& logits, int num_experts, int k) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  unsigned keys[kMaxExpertsPerLane];
#pragma unroll
  for (int i = 0; i < kMaxExpertsPerLane; ++i) {
    const bool there = i < logits.per_lane && lane * logits.per_lane + i < num_experts;
    keys[i] = there ? rank_key(logits.value[i]) : 0;
  }
  int mine = 0;
  for (int choice = 0; choice < k; ++choice) {
    unsigned best = 0;
    int best_at = 0;
#pragma unroll
    for (int i = 0; i < kMaxExpertsPerLane; ++i) {
      if (keys[i] > best) {
        best = keys[i];
        best_at = i;
      }
    }
    const unsigned top = __reduce_max_sync(kAllLanes, best);
    const int winner = __ffs(static_cast<int>(__ballot_sync(kAllLanes, best == top))) - 1;
    const int at = __shfl_sync(kAllLanes, best_at, winner);
    if (lane == choice) mine = winner * logits.per_lane + at;
#pragma unroll
    for (int i = 0; i < kMaxExpertsPerLane; ++i) {
      if (lane == winner && i == at) keys[i] = 0;
    }
  }
  return mine;
}

// One row by one warp: its norm factor, experts and weights.
__device__ __forceinline__ void route_row(const RoutingArgs& args, int row, int group_row,
                                          Routing& routing) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int k = args.experts_per_token;
  RowLogits logits;
  logits.per_lane = (args.num_experts + kWarp - 1) / kWarp;
  const unsigned bad = __ldcg(args.sums.not_finite + row);
  const int position = args.positions[row];
  long long sums[kMaxExpertsPerLane];
#pragma unroll
  for (int i = 0; i < kMaxExpertsPerLane; ++i) {
    const int expert = lane * logits.per_lane + i;
    const bool there = i < logits.per_lane && expert < args.num_experts;
    sums[i] =
        there ? static_cast<long long>(__ldcg(
                    args.sums.sums + static_cast<std::int64_t>(row) * args.num_experts + expert))
              : 0;
  }
  const float* squares = args.squares + static_cast<std::int64_t>(row) * (args.hidden / kTileRows);
  const float factor =
      norm_factor(args.hidden, args.eps, [&](int tile) { return __ldcg(squares + tile); });
#pragma unroll
  for (int i = 0; i < kMaxExpertsPerLane; ++i) {
    const float sum = static_cast<float>(sums[i]) * (1.0f / kRouterUnits);
    const int expert = lane * logits.per_lane + i;
    const bool there = i < logits.per_lane && expert < args.num_experts;
    const float bias = there ? routing.bias[expert] : 0.0f;
    logits.value[i] = bad != 0 ? __int_as_float(0x7fc00000) : sum * factor + bias;
  }
  int expert = 0;
  if (args.forced == nullptr) {
    expert = choose_experts(logits, args.num_experts, k);
  } else if (lane < k) {
    expert = args.forced[static_cast<std::int64_t>(row) * k + lane];
  }
  const float logit = logits.of(lane < k ? expert : 0);
  const float top = warp_max(lane < k ? logit : -INFINITY);
  const float power = lane < k ? expf(logit - top) : 0.0f;
  const float weight = power / warp_sum(power);
  int place = 0;  // among the row's experts in ascending order
  for (int other = 0; other < k; ++other) {
    const int id = __shfl_sync(kAllLanes, expert, other);
    if (id < expert || (id == expert && other < lane)) ++place;
  }
  if (lane < k) {
    routing.expert[group_row][place] = static_cast<std::int16_t>(position < 0 ? -1 : expert);
    routing.weight[group_row][place] = weight;
  }
  if (lane == 0) routing.factor[group_row] = factor;
}

// Rows first_row ... first_row + num_rows - 1; ends with a barrier of the block.
__device__ __forceinline__ void route(const RoutingArgs& args, int first_row, int num_rows,
                                      Routing& routing) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int num_warps = static_cast<int>(blockDim.x) / kWarp;
  for (int row = warp; row < num_rows; row += num_warps) {
    route_row(args, first_row + row, row, routing);
  }
  __syncthreads();  // every row's experts, before they are gathered
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts;
       expert += static_cast<int>(blockDim.x)) {
    unsigned rows = 0;
    for (int row = 0; row < num_rows; ++row) {
      for (int choice = 0; choice < args.experts_per_token; ++choice) {
        if (routing.expert[row][choice] == expert) rows |= 1u << row;
      }
    }
    routing.rows[expert] = static_cast<std::uint16_t>(rows);
  }
  __syncthreads();  // every expert's rows, before they are counted
  if (warp == 0) {
    int count = 0;
    for (int first = 0; first < args.num_experts; first += kWarp) {
      const int expert = first + static_cast<int>(threadIdx.x);
      const bool active = expert < args.num_experts && routing.rows[expert] != 0;
      const unsigned mask = __ballot_sync(kAllLanes, active);
      const unsigned below = mask & ((1u << threadIdx.x) - 1);
      if (active) routing.active[count + __popc(below)] = static_cast<std::int16_t>(expert);
      count += __popc(mask);
    }
    if (threadIdx.x == 0) routing.num_active = count;
  }
  __syncthreads();  // the list, before it is read
}

}  // namespace gptoss::cuda
