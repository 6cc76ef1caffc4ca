// A block's share of the products of few rows with their experts: some warps multiply tiles as they
// stream, others finish them.
//
// A unit is a tile of an expert (of at most kGroupRows of its rows). Units are dealt out in
// consecutive runs, so that a block sees one or two experts and stages their rows alone. The warps
// that multiply never wait for one another but to stage rows: each puts its share of a unit into a
// slot, and the slot's own warp adds the shares up while the next units are multiplied.
#pragma once

#include <cstdint>

#include "cuda/device/routing.h"
#include "cuda/device/tile_stream.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/named_barrier.h"

namespace gptoss::cuda {

// Hands a slot of shares from the warps that multiply to the one that finishes, and back.
template <bool kUseMbarrier>
class SlotBarriers {
 public:
  static constexpr int kBytes = 2 * kFinishWarps * 8;

  __device__ explicit SlotBarriers(std::uint64_t* barriers) : barriers_(barriers) {}
  // By one thread, before a barrier of the block.
  __device__ void init() const {
    if constexpr (kUseMbarrier) {
      for (int slot = 0; slot < kFinishWarps; ++slot) {
        ptx::mbarrier_init(full(slot), kMxWarps);
        ptx::mbarrier_init(empty(slot), 1);
      }
      ptx::fence_mbarrier_init();
    }
  }
  // By a whole warp each; `round`: how often the slot has been used before.
  __device__ void wait_empty(int slot, int round) const {
    if (round == 0) return;
    if constexpr (kUseMbarrier) {
      ptx::mbarrier_wait(empty(slot), (round - 1) & 1);
    } else {
      ptx::named_barrier_sync<kHandOver>(kFirstNumber + 2 * slot);
    }
  }
  __device__ void put_full(int slot) const {
    if constexpr (kUseMbarrier) {
      __syncwarp();  // the warp's shares
      if (threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(full(slot));
    } else {
      ptx::named_barrier_arrive<kHandOver>(kFirstNumber + 2 * slot + 1);
    }
  }
  __device__ void wait_full(int slot, int round) const {
    if constexpr (kUseMbarrier) {
      ptx::mbarrier_wait(full(slot), round & 1);
    } else {
      ptx::named_barrier_sync<kHandOver>(kFirstNumber + 2 * slot + 1);
    }
  }
  // `is_last`: nobody will wait for it.
  __device__ void put_empty(int slot, bool is_last) const {
    if constexpr (kUseMbarrier) {
      __syncwarp();  // every lane has read
      if (threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(empty(slot));
    } else if (!is_last) {
      ptx::named_barrier_arrive<kHandOver>(kFirstNumber + 2 * slot);
    }
  }

 private:
  static constexpr int kHandOver = (kMxWarps + 1) * kWarp;
  static constexpr int kFirstNumber = 2;

  __device__ std::uint32_t full(int slot) const {
    return ptx::shared_address(barriers_ + 2 * slot);
  }
  __device__ std::uint32_t empty(int slot) const {
    return ptx::shared_address(barriers_ + 2 * slot + 1);
  }

  std::uint64_t* barriers_;
};

// Units one after another, without a division.
class UnitCursor {
 public:
  __device__ UnitCursor(int unit, int num_tiles)
      : num_tiles_(num_tiles), item_(unit / num_tiles), tile_(unit % num_tiles) {}
  __device__ __forceinline__ void advance(int units) {
    tile_ += units;
#pragma unroll 1
    while (tile_ >= num_tiles_) {
      tile_ -= num_tiles_;
      ++item_;
    }
  }
  __device__ int item() const { return item_; }
  __device__ int tile() const { return tile_; }

 private:
  int num_tiles_;
  int item_;
  int tile_;
};

struct TileOfItem {
  const Routing& routing;
  const MxTiles& weight;
  std::int64_t tile_bytes;
  UnitCursor cursor;

  __device__ const std::uint8_t* operator()() {
    const std::uint8_t* at = weight.data +
                             routing.items[cursor.item()].expert * weight.expert_bytes() +
                             cursor.tile() * tile_bytes;
    cursor.advance(1);
    return at;
  }
};

template <int kTokens, RingCopy kCopy>
class ExpertStream {
 public:
  using Stream = MxStream<kCopy>;
  using Barriers = SlotBarriers<WeightRing<kCopy, kMxStages>::kIsBulk>;

  // Shared memory, aligned to 128: ring, its barriers, the slots', shares, rows.
  static constexpr int kTokensAtOnce = kTokens == 1 ? 1 : kTokens <= 8 ? 8 : kGroupRows;
  // Lanes of a quarter write tokens 2q: no two banks alike.
  static constexpr int kTokenFloats = kMxWarps * kTileRows + 4;
  static constexpr int kSlotFloats = kTokensAtOnce * kTokenFloats;
  static constexpr std::uint32_t kRingBarriers = Stream::kRingBytes;
  static constexpr std::uint32_t kBarriers = kRingBarriers + Stream::kBarrierBytes;
  static constexpr std::uint32_t kShares = (kBarriers + Barriers::kBytes + 127) / 128 * 128;
  static constexpr std::uint32_t kRows =
      (kShares + kFinishWarps * kSlotFloats * 4 + 127) / 128 * 128;
  // Rows that lie there together: an item's at least.
  static constexpr int kRowsStaged = kTokens == 1 ? 4 : kTokensAtOnce;
  static constexpr std::size_t bytes(int num_pairs) {
    return kRows + static_cast<std::size_t>(kRowsStaged) * activation_row_bytes(num_pairs);
  }

  // By all threads; a barrier of the block follows.
  __device__ ExpertStream(const MxTiles& weight, const Routing& routing, std::uint8_t* smem)
      : weight_(weight),
        routing_(routing),
        smem_(smem),
        barriers_(reinterpret_cast<std::uint64_t*>(smem + kBarriers)) {
    if (threadIdx.x == 0) barriers_.init();
  }

  // After routing: which units are the block's.
  __device__ void deal() {
    const int num_units = routing_.num_items * static_cast<int>(weight_.row_tiles());
    const auto part = [&](unsigned block) {
      return static_cast<int>(static_cast<std::int64_t>(num_units) * block / gridDim.x);
    };
    first_unit_ = part(blockIdx.x);
    num_units_ = part(blockIdx.x + 1) - first_unit_;
  }

  // The warps below kMxWarps. `x`: rows in fragment order, source(item, token) being the row of a
  // token; wait() comes between asking for weights and asking for rows.
  template <class Source, class Wait>
  __device__ __forceinline__ void multiply(const __nv_bfloat16* x, const Source& source,
                                           const Wait& wait) {
    const int num_tiles = static_cast<int>(weight_.row_tiles());
    TileOfItem locate{routing_, weight_, weight_.k_chunks() * kMxRecordBytes,
                      UnitCursor(first_unit_, num_tiles)};
    Stream stream(smem_ + kRingBarriers, smem_, static_cast<int>(weight_.cols));
    stream.start(num_units_, locate);
    wait();
    typename Stream::template Product<1> one;
    UnitCursor cursor(first_unit_, num_tiles);
    int staged_to = cursor.item();  // items before it are in shared memory or done
    int first_row = 0;              // of the item
    for (int unit = 0; unit < num_units_; ++unit) {
      const int item = cursor.item();
      if (item >= staged_to) {
        if (unit > 0) sync();  // everybody has multiplied the rows that were there
        staged_to = stage(x, source, item);
        sync();  // the rows, before they are read
        first_row = 0;
        one.forget();
      }
      const int count = kTokens == 1 ? 1 : routing_.items[item].count();
      const int slot = unit % kFinishWarps;
      const int round = unit / kFinishWarps;
      if (kTokens == 1) {
        multiply_unit<1>(stream, one, locate, first_row, count, slot, round);
      } else if (kTokens <= 8 || count <= 8) {
        typename Stream::template Product<8> product;
        multiply_unit<8>(stream, product, locate, first_row, count, slot, round);
      } else {
        typename Stream::template Product<kTokens> product;
        multiply_unit<kTokens>(stream, product, locate, first_row, count, slot, round);
      }
      cursor.advance(1);
      if (cursor.item() != item) first_row += count;
    }
  }

  // The warps from kMxWarps on: prepare(item, tile) before a unit's sums are there, then
  // finish(prepared, item, tile, sums), sums(token, row) being the product's.
  template <class Prepare, class Finish>
  __device__ __forceinline__ void finish(const Prepare& prepare, const Finish& finish) {
    const int slot = static_cast<int>(threadIdx.x) / kWarp - kMxWarps;
    const float* shares = reinterpret_cast<const float*>(smem_ + kShares) + slot * kSlotFloats;
    UnitCursor cursor(first_unit_ + slot, static_cast<int>(weight_.row_tiles()));
    int round = 0;
#pragma unroll 1
    for (int unit = slot; unit < num_units_; unit += kFinishWarps, ++round) {
      const ExpertRows item = routing_.items[cursor.item()];
      const auto prepared = prepare(item, cursor.tile());
      barriers_.wait_full(slot, round);
      finish(prepared, item, cursor.tile(), [&](int token, int row) {
        const float* at = shares + token * kTokenFloats + row;
        float sum = at[0];
#pragma unroll
        for (int warp = 1; warp < kMxWarps; ++warp) sum += at[warp * kTileRows];
        return sum;
      });
      barriers_.put_empty(slot, unit + kFinishWarps >= num_units_);
      cursor.advance(kFinishWarps);
    }
  }

 private:
  __device__ static void sync() { ptx::named_barrier_sync<kMxWarps * kWarp>(1); }

  // Rows of the items from `first` on, as many as there is room for (one item at least); returns
  // the item after them.
  template <class Source>
  __device__ __forceinline__ int stage(const __nv_bfloat16* x, const Source& source, int first) {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const int num_tiles = static_cast<int>(weight_.row_tiles());
    const int end = (first_unit_ + num_units_ - 1) / num_tiles + 1;
    int from = 0;  // of staged row `lane`
    int num_rows = 0;
    int item = first;
#pragma unroll 1
    for (; item < end; ++item) {
      const ExpertRows rows = routing_.items[item];
      const int count = rows.count();
      if (num_rows + count > kRowsStaged) break;
      if (lane >= num_rows && lane < num_rows + count) from = source(rows, lane - num_rows);
      num_rows += count;
    }
    const int num_pairs = 2 * static_cast<int>(weight_.k_chunks());
    copy_fragments(smem_ + kRows, x, num_pairs, num_rows,
                   [&](int row) { return __shfl_sync(kAllLanes, from, row); });
    copies_landed();
    return item;
  }

  template <int kCount, class Product, class Locate>
  __device__ __forceinline__ void multiply_unit(Stream& stream, Product& product, Locate& locate,
                                                int first_row, int count, int slot, int round) {
    constexpr int kTiles = kTokenTilesOf<kCount>;
    const std::uint32_t row_bytes = activation_row_bytes(2 * static_cast<int>(weight_.k_chunks()));
    const uint4* x[kTiles];
    float acc[kTiles][4];
    point_at_rows<kTiles>(x, smem_ + kRows, row_bytes, count,
                          [&](int token) { return first_row + token; });
    stream.template multiply<kCount>(product, acc, x, locate);
    barriers_.wait_empty(slot, round);
    float* at = reinterpret_cast<float*>(smem_ + kShares) + slot * kSlotFloats +
                threadIdx.x / kWarp * kTileRows + threadIdx.x % kWarp / 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = 8 * t + 2 * static_cast<int>(threadIdx.x % 4) + i;
        if (token >= count) continue;
        at[token * kTokenFloats] = acc[t][i];
        at[token * kTokenFloats + 8] = acc[t][2 + i];
      }
    }
    barriers_.put_full(slot);
  }

  const MxTiles& weight_;
  const Routing& routing_;
  std::uint8_t* smem_;
  Barriers barriers_;
  int first_unit_ = 0;
  int num_units_ = 0;
};

// What shared memory is asked for.
inline std::size_t expert_smem_bytes(int num_rows, std::int64_t columns) {
  const int num_pairs = 2 * static_cast<int>(tiles_along(columns, kMxChunk));
  if (num_rows == 1) return ExpertStream<1, RingCopy::kBulk>::bytes(num_pairs);
  if (num_rows <= 8) return ExpertStream<8, RingCopy::kBulk>::bytes(num_pairs);
  return ExpertStream<kGroupRows, RingCopy::kBulk>::bytes(num_pairs);
}

}  // namespace gptoss::cuda
