// Each row's experts, found by every block for itself from the router's sums: a few hundred bytes a
// row, less than another kernel would cost.
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

// An expert and at most kGroupRows of its rows: what a block multiplies at a time.
struct ExpertRows {
  std::int32_t expert;
  std::uint32_t rows;  // bit i for row i of the step

  __device__ int count() const { return __popc(rows); }
  __device__ int row_of(int token) const {
    std::uint32_t bits = rows;
#pragma unroll 1
    for (; token > 0; --token) bits &= bits - 1;
    return __ffs(static_cast<int>(bits)) - 1;
  }
};

// Of a step's rows; lies in shared memory.
struct Routing {
  static_assert(kSmallRows <= 32 && kSmallRows <= 2 * kGroupRows);
  // An expert of more than kGroupRows rows is there twice.
  static constexpr int kMostItems =
      kMaxRoutedExperts + kSmallRows * kMaxExpertsPerToken / (kGroupRows + 1);

  int num_items;
  ExpertRows items[kMostItems];                          // experts ascending
  std::uint32_t rows[kMaxRoutedExperts];                 // of expert
  std::int16_t expert[kSmallRows][kMaxExpertsPerToken];  // a row's, ascending
  float weight[kSmallRows][kMaxExpertsPerToken];
  float factor[kSmallRows];  // 1 / rms

  // Which of the row's experts it is.
  __device__ int choice_of(int row, int expert_id) const {
    int choice = 0;
#pragma unroll 1
    while (expert[row][choice] != expert_id) ++choice;
    return choice;
  }
};

// Before route(), with a barrier between.
__device__ __forceinline__ void clear_routing(const RoutingArgs& args, Routing& routing) {
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts;
       expert += static_cast<int>(blockDim.x)) {
    routing.rows[expert] = 0;
  }
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

// One row by one warp: its norm factor, experts and weights. All that is read is asked for at once.
__device__ __forceinline__ void route_row(const RoutingArgs& args, int row, Routing& routing) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int k = args.experts_per_token;
  RowLogits logits;
  logits.per_lane = (args.num_experts + kWarp - 1) / kWarp;
  const unsigned bad = __ldcg(args.sums.not_finite + row);
  const int position = args.positions[row];
  int expert = 0;
  if (args.forced != nullptr && lane < k) {
    expert = args.forced[static_cast<std::int64_t>(row) * k + lane];
  }
  long long sums[kMaxExpertsPerLane];
  float bias[kMaxExpertsPerLane];
#pragma unroll
  for (int i = 0; i < kMaxExpertsPerLane; ++i) {
    if (i >= logits.per_lane) break;
    const int id = lane * logits.per_lane + i;
    sums[i] = 0;
    bias[i] = 0.0f;
    if (id < args.num_experts) {
      sums[i] = static_cast<long long>(
          __ldcg(args.sums.sums + static_cast<std::int64_t>(row) * args.num_experts + id));
      bias[i] = to_float(args.bias[id]);
    }
  }
  const float* squares = args.squares + static_cast<std::int64_t>(row) * (args.hidden / kTileRows);
  const float factor =
      norm_factor(args.hidden, args.eps, [&](int tile) { return __ldcg(squares + tile); });
#pragma unroll
  for (int i = 0; i < kMaxExpertsPerLane; ++i) {
    logits.value[i] = 0.0f;
    if (i >= logits.per_lane) continue;
    const float sum = static_cast<float>(sums[i]) * (1.0f / kRouterUnits);
    logits.value[i] = bad != 0 ? __int_as_float(0x7fc00000) : sum * factor + bias[i];
  }
  if (args.forced == nullptr) expert = choose_experts(logits, args.num_experts, k);
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
    routing.expert[row][place] = static_cast<std::int16_t>(position < 0 ? -1 : expert);
    routing.weight[row][place] = weight;
    if (position >= 0) atomicOr(&routing.rows[expert], 1u << row);
  }
  if (lane == 0) routing.factor[row] = factor;
}

// The rows' experts in ascending order, by one warp.
__device__ __forceinline__ void list_items(const RoutingArgs& args, Routing& routing) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const unsigned below = (1u << lane) - 1;
  int count = 0;
#pragma unroll 1
  for (int first = 0; first < args.num_experts; first += kWarp) {
    const int expert = first + lane;
    const std::uint32_t rows = expert < args.num_experts ? routing.rows[expert] : 0;
    const bool twice = __popc(rows) > kGroupRows;
    const unsigned active = __ballot_sync(kAllLanes, rows != 0);
    const unsigned again = __ballot_sync(kAllLanes, twice);
    if (rows != 0) {
      int at = count + __popc(active & below) + __popc(again & below);
      std::uint32_t rest = rows;
      if (twice) {
        for (int i = 0; i < kGroupRows; ++i) rest &= rest - 1;
        routing.items[at++] = {expert, rows ^ rest};
      }
      routing.items[at] = {expert, rest};
    }
    count += __popc(active) + __popc(again);
  }
  if (lane == 0) routing.num_items = count;
}

// All of the step's rows; ends with a barrier of the block.
__device__ __forceinline__ void route(const RoutingArgs& args, Routing& routing) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int num_warps = static_cast<int>(blockDim.x) / kWarp;
#pragma unroll 1
  for (int row = warp; row < args.num_rows; row += num_warps) route_row(args, row, routing);
  __syncthreads();  // every row's experts, before they are listed
  if (warp == 0) list_items(args, routing);
  __syncthreads();  // the list, before it is read
}

}  // namespace gptoss::cuda
