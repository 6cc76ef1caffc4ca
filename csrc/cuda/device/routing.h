// Each row's experts, found by every block of gate_up for itself from the router's sums: a few
// hundred bytes a row, less than another kernel would cost. One block leaves them for down.
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

// Of a step's rows; lies in shared memory, and a copy in SmallBuffers::routing.
struct alignas(16) Routing {
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

static_assert(sizeof(Routing) <= kRoutingBytes && sizeof(Routing) % 16 == 0);

// Leaves the routing for later kernels; by `num_threads` threads, this one being number `thread`.
__device__ __forceinline__ void put_routing(void* to, const Routing& routing, int thread,
                                            int num_threads) {
#pragma unroll 1
  for (int i = thread; i < static_cast<int>(sizeof(Routing) / 16); i += num_threads) {
    static_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(&routing)[i];
  }
}
// Takes what an earlier kernel left; by the whole block, a barrier follows.
__device__ __forceinline__ void take_routing(Routing& routing, const void* from) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sizeof(Routing) / 16);
       i += static_cast<int>(blockDim.x)) {
    reinterpret_cast<uint4*>(&routing)[i] = __ldcg(static_cast<const uint4*>(from) + i);
  }
}

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

// The logit that a key was made of.
__device__ __forceinline__ float logit_of_key(unsigned key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}

// A row's choice, lane i < k having the i-th best expert.
struct RowChoice {
  int expert;
  int place;  // among the row's experts in ascending order
  float weight;
  float factor;  // 1 / rms, in every lane
};

// One row by one warp, kPerLane experts a lane, whose biases the lane has. All that is read is
// asked for at once, and the code is short: it runs once, from a cold instruction cache.
template <int kPerLane>
__device__ __forceinline__ RowChoice choose_for_row(const RoutingArgs& args, int row,
                                                    const float (&bias)[kPerLane]) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int k = args.experts_per_token;
  const unsigned bad = __ldcg(args.sums.not_finite + row);
  RowChoice choice{};
  if (args.forced != nullptr && lane < k) {
    choice.expert = args.forced[static_cast<std::int64_t>(row) * k + lane];
  }
  long long sums[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int id = i * kWarp + lane;
    sums[i] = id < args.num_experts
                  ? static_cast<long long>(__ldcg(
                        args.sums.sums + static_cast<std::int64_t>(row) * args.num_experts + id))
                  : 0;
  }
  const float* squares = args.squares + static_cast<std::int64_t>(row) * (args.hidden / kTileRows);
  choice.factor =
      norm_factor(args.hidden, args.eps, [&](int tile) { return __ldcg(squares + tile); });
  float logits[kPerLane];
  unsigned keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const float sum = static_cast<float>(sums[i]) * (1.0f / kRouterUnits);
    logits[i] = bad != 0 ? __int_as_float(0x7fc00000) : sum * choice.factor + bias[i];
    keys[i] = i * kWarp + lane < args.num_experts ? rank_key(logits[i]) : 0;
  }
  float logit = 0.0f;  // of the lane's expert
  if (args.forced == nullptr) {
#pragma unroll 1
    for (int round = 0; round < k; ++round) {
      unsigned best = 0;
      int best_id = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (keys[i] > best) {
          best = keys[i];
          best_id = i * kWarp + lane;
        }
      }
      const unsigned top = __reduce_max_sync(kAllLanes, best);
      const int id = __reduce_min_sync(kAllLanes, best == top ? best_id : kMaxRoutedExperts);
      if (lane == round) {
        choice.expert = id;
        logit = logit_of_key(top);
      }
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (i * kWarp + lane == id) keys[i] = 0;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const float there = __shfl_sync(kAllLanes, logits[i], choice.expert % kWarp);
      if (choice.expert / kWarp == i) logit = there;
    }
  }
  const float top = warp_max(lane < k ? logit : -INFINITY);
  const float power = lane < k ? expf(logit - top) : 0.0f;
  choice.weight = power / warp_sum(power);
#pragma unroll 1
  for (int other = 0; other < k; ++other) {
    const int id = __shfl_sync(kAllLanes, choice.expert, other);
    if (id < choice.expert || (id == choice.expert && other < lane)) ++choice.place;
  }
  return choice;
}

// The biases of a lane's experts, of args.num_experts.
template <int kPerLane>
__device__ __forceinline__ void load_router_bias(float (&bias)[kPerLane], const RoutingArgs& args) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int id = i * kWarp + static_cast<int>(threadIdx.x % kWarp);
    bias[i] = id < args.num_experts ? to_float(args.bias[id]) : 0.0f;
  }
}

template <int kPerLane>
__device__ __forceinline__ void route_row(const RoutingArgs& args, int row, Routing& routing) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int position = args.positions[row];
  float bias[kPerLane];
  load_router_bias(bias, args);
  const RowChoice choice = choose_for_row(args, row, bias);
  if (lane < args.experts_per_token) {
    routing.expert[row][choice.place] =
        static_cast<std::int16_t>(position < 0 ? -1 : choice.expert);
    routing.weight[row][choice.place] = choice.weight;
    if (position >= 0) atomicOr(&routing.rows[choice.expert], 1u << row);
  }
  if (lane == 0) routing.factor[row] = choice.factor;
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
  for (int row = warp; row < args.num_rows; row += num_warps) {
    if (args.num_experts <= kWarp) {
      route_row<1>(args, row, routing);
    } else if (args.num_experts <= 4 * kWarp) {
      route_row<4>(args, row, routing);
    } else {
      route_row<kMaxExpertsPerLane>(args, row, routing);
    }
  }
  __syncthreads();  // every row's experts, before they are listed
  if (warp == 0) list_items(args, routing);
  __syncthreads();  // the list, before it is read
}

}  // namespace gptoss::cuda
