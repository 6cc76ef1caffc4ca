// A block's share of the products of one row with its experts, for Hopper: what a token alone waits
// for, so that little stands between the routing and the first weights, and between one unit and
// the next.
//
// A unit is a tile of an expert. Units are dealt out in consecutive runs. kExpertRowStages warps
// own a stage of shared memory each: such a warp asks for the weights of every kExpertRowStages-th
// unit in one copy, and when the kMxWarps other warps have multiplied them, adds up their shares,
// asks for the stage's next unit and finishes this one. A warp that multiplies has one piece of
// every unit, so that it keeps its activations in registers; it waits for the weights and for
// nothing else. Sums are added up in the order of MxProduct and ExpertStream, which give the same
// bits.
#pragma once

#include <cstdint>

#include "cuda/device/routing.h"
#include "cuda/device/small_product.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/async_copy.h"
#include "cuda/ptx/dependent_launch.h"
#include "cuda/ptx/mbarrier.h"

namespace gptoss::cuda {

constexpr int kExpertRowStages = 4;
// The next kernel may start when so many of a block's units are still to be asked for: what it asks
// for first then comes when this block has asked for its last. (gpt-oss-20b on an H200, a token:
// 1,274 us with 6, 1,276 with 4, 1,330 with 8.)
constexpr int kUnitsLeftAtStart = 6;
constexpr int kExpertRowThreads = (kMxWarps + kExpertRowStages) * kWarp;
// A warp has one piece of a unit, and a lane so many experts at most.
constexpr int kExpertRowColumns = kMxWarps * kMxPiece * kMxChunk;
constexpr int kExpertRowPerLane = 4;
constexpr int kExpertRowExperts = kExpertRowPerLane * kWarp;

// A warp's piece of one unit: low and high become the lane's share of rows g and g + 8, that of the
// blocks of record lane % 4, or 0 where the unit ends before that record.
//
// The tensor cores' eight columns are the piece's blocks: column n holds the activations of block
// n (`x`, lane / 4 being n). Only the sum of a column's own block counts, and a lane has those of
// record lane % 4, with the four scales it needs in one word.
__device__ __forceinline__ void multiply_piece(const std::uint8_t* piece, const uint4& x,
                                               bool record_there, float& low, float& high) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int record = lane % 4;
  uint4 codes[kMxPiece];
#pragma unroll
  for (int r = 0; r < kMxPiece; ++r) {
    codes[r] = reinterpret_cast<const uint4*>(piece + r * kMxRecordBytes)[lane];
  }
  const std::uint32_t scales = scales_of(piece + record * kMxRecordBytes, lane / 4);
  float sums[4] = {};  // the lane's: rows g of its two blocks, rows g + 8
#pragma unroll
  for (int r = 0; r < kMxPiece; ++r) {
    float first[4] = {};
    float second[4] = {};
    std::uint32_t a0[4];
    std::uint32_t a1[4];
    expand_e2m1(a0, a1, codes[r].x, codes[r].y);
    ptx::mma_m16n8k16(first, a0, x.x, x.y);
    ptx::mma_m16n8k16(first, a1, x.z, x.w);
    expand_e2m1(a0, a1, codes[r].z, codes[r].w);
    ptx::mma_m16n8k16(second, a0, x.x, x.y);
    ptx::mma_m16n8k16(second, a1, x.z, x.w);
    const bool mine = record == r;
    sums[0] = mine ? first[0] : sums[0];
    sums[1] = mine ? second[1] : sums[1];
    sums[2] = mine ? first[2] : sums[2];
    sums[3] = mine ? second[3] : sums[3];
  }
  low = fmaf(sums[0], scale_e8m0(scales, 0), 0.0f);
  low = fmaf(sums[1], scale_e8m0(scales, 1), low);
  high = fmaf(sums[2], scale_e8m0(scales, 2), 0.0f);
  high = fmaf(sums[3], scale_e8m0(scales, 3), high);
  if (!record_there) low = high = 0.0f;
}

class ExpertRow {
 public:
  // Shared memory, aligned to 128: barriers, shares [stages][warps][rows][quarters], weights. The
  // last warp may read past what its unit has.
  static constexpr std::uint32_t kShareFloats = kMxWarps * kTileRows * 4;
  static constexpr std::uint32_t kShares = 128;
  static constexpr std::uint32_t kWeights = kShares + kExpertRowStages * kShareFloats * 4;
  static std::size_t bytes(const MxTiles& weight) {
    const std::int64_t tile = weight.k_chunks() * kMxRecordBytes;
    constexpr std::int64_t kMost = kMxWarps * kMxPiece * kMxRecordBytes;
    return kWeights + static_cast<std::size_t>((kExpertRowStages - 1) * tile + kMost);
  }

  // By all threads; a barrier of the block follows. `num_choices` of the row, 0 for none.
  __device__ ExpertRow(const MxTiles& weight, int num_choices, std::uint8_t* smem)
      : weight_(weight),
        num_tiles_(static_cast<int>(weight.row_tiles())),
        tile_bytes_(static_cast<std::uint32_t>(weight.k_chunks()) * kMxRecordBytes),
        smem_(smem),
        barriers_(ptx::shared_address(smem)) {
    const int total = num_choices * num_tiles_;
    const int blocks = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int each = total / blocks;
    const int rest = total - each * blocks;
    first_ = block * each + min(block, rest);
    count_ = each + (block < rest ? 1 : 0);
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int stage = 0; stage < kExpertRowStages; ++stage) {
      ptx::mbarrier_init(full(stage), 1);
      ptx::mbarrier_init(done(stage), kMxWarps);
    }
    ptx::fence_mbarrier_init();
  }

  // The warps below kMxWarps: x_of(choice) is the lane's part of a choice's activations.
  template <class XOf>
  __device__ __forceinline__ void multiply(const XOf& x_of) const {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const int num_records = static_cast<int>(weight_.k_chunks()) - warp * kMxPiece;
    const bool record_there = lane % 4 < num_records;
    const std::uint8_t* piece = smem_ + kWeights + warp * kMxPiece * kMxRecordBytes;
    float* shares = reinterpret_cast<float*>(smem_ + kShares) + warp * (kTileRows * 4) + lane;
    int choice = first_ / num_tiles_;
    int until = (choice + 1) * num_tiles_ - first_;
    uint4 x = count_ > 0 ? x_of(choice) : uint4{};
    std::uint32_t parity = 0;
    int stage = 0;
#pragma unroll 1
    for (int unit = 0; unit < count_; ++unit) {
      if (unit == until) {
        x = x_of(++choice);
        until += num_tiles_;
      }
      ptx::mbarrier_wait(full(stage), parity);
      float low;
      float high;
      multiply_piece(piece + stage * tile_bytes_, x, record_there, low, high);
      shares[stage * kShareFloats] = low;
      shares[stage * kShareFloats + 8 * 4] = high;
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(done(stage));
      if (++stage == kExpertRowStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }

  // The other warps: expert_of(choice) with all lanes, prepare(expert, tile) before a unit's sums
  // are there, finish(prepared, choice, tile, sum), sum being that of the row lane % 16. When the
  // block's last weights are asked for, the next kernel may start.
  template <class ExpertOf, class Prepare, class Finish>
  __device__ __forceinline__ void finish(const ExpertOf& expert_of, const Prepare& prepare,
                                         const Finish& finish) const {
    const int stage = static_cast<int>(threadIdx.x) / kWarp - kMxWarps;
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    if (count_ == 0) ptx::launch_dependents();
    if (stage >= count_) return;
    int choice = (first_ + stage) / num_tiles_;
    int tile = (first_ + stage) % num_tiles_;
    int expert = expert_of(choice);
    ask(stage, expert, tile, stage);
    const float4* shares =
        reinterpret_cast<const float4*>(smem_ + kShares) + stage * (kShareFloats / 4) + lane % 16;
    std::uint32_t parity = 0;
#pragma unroll 1
    for (int unit = stage; unit < count_; unit += kExpertRowStages) {
      const auto prepared = prepare(expert, tile);
      const int this_choice = choice;
      const int this_tile = tile;
      tile += kExpertRowStages;
      while (tile >= num_tiles_) {
        tile -= num_tiles_;
        ++choice;
      }
      if (unit + kExpertRowStages < count_) expert = expert_of(choice);
      ptx::mbarrier_wait(done(stage), parity);
      parity ^= 1;
      float sum = share(shares[0]);
#pragma unroll
      for (int warp = 1; warp < kMxWarps; ++warp) sum += share(shares[warp * kTileRows]);
      __syncwarp();  // the shares have been read
      if (unit + kExpertRowStages < count_) ask(stage, expert, tile, unit + kExpertRowStages);
      finish(prepared, this_choice, this_tile, sum);
    }
  }

 private:
  __device__ static float share(const float4& quarters) {
    return ((quarters.x + quarters.y) + (quarters.z + quarters.w)) * kMxSumFactor;
  }
  __device__ void ask(int stage, int expert, int tile, int unit) const {
    if (threadIdx.x % kWarp != 0) return;
    ptx::mbarrier_arrive_expect_bytes(full(stage), tile_bytes_);
    ptx::bulk_copy(ptx::shared_address(smem_ + kWeights + stage * tile_bytes_),
                   weight_.data + expert * weight_.expert_bytes() +
                       static_cast<std::int64_t>(tile) * tile_bytes_,
                   tile_bytes_, full(stage));
    if (unit == max(0, count_ - 1 - kUnitsLeftAtStart)) ptx::launch_dependents();
  }
  __device__ std::uint32_t full(int stage) const { return barriers_ + 16 * stage; }
  __device__ std::uint32_t done(int stage) const { return barriers_ + 16 * stage + 8; }

  const MxTiles& weight_;
  int num_tiles_;
  std::uint32_t tile_bytes_;
  std::uint8_t* smem_;
  std::uint32_t barriers_;
  int first_;
  int count_;
};

// What gate_up leaves of a row's routing: for down, which reads it before gate_up has ended, and
// for the weighted sum. By one warp, before its block lets the next kernel start.
__device__ __forceinline__ void put_row_choice(void* routing, const RowChoice& choice, int k,
                                               bool there) {
  auto* to = static_cast<Routing*>(routing);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  if (lane < k) {
    to->expert[0][choice.place] = static_cast<std::int16_t>(there ? choice.expert : -1);
    to->weight[0][choice.place] = choice.weight;
  }
  __threadfence();
  __syncwarp();
}

// The expert that stands at `place` of those in a warp's lanes; with all lanes.
__device__ __forceinline__ int expert_at(const RowChoice& choice, int k, int place) {
  const bool mine = static_cast<int>(threadIdx.x % kWarp) < k && choice.place == place;
  const unsigned found = __ballot_sync(kAllLanes, mine);
  return __shfl_sync(kAllLanes, choice.expert, __ffs(static_cast<int>(found)) - 1);
}

// The lane's part of a row that lies in fragment order, `num_chunks` of kMxChunk columns; zeros
// past the end.
__device__ __forceinline__ uint4 piece_of_row(const __nv_bfloat16* row, int num_chunks) {
  constexpr int kChunkQuads = kMxChunk / 8;  // uint4
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int at = warp * kWarp + lane;
  static_assert(kMxPiece * kChunkQuads == kWarp);
  if (at >= num_chunks * kChunkQuads) return uint4{};
  return __ldcg(reinterpret_cast<const uint4*>(row) + at);
}

}  // namespace gptoss::cuda
