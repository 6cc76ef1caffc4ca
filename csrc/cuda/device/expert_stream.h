// A block's share of the products of few rows with their experts: some warps multiply tiles as they
// stream, others finish them.
//
// A unit is a tile of an expert (of at most kGroupRows of its rows). Units are dealt out in
// consecutive runs, so that a block sees one or two experts and stages their rows alone. The warps
// that multiply never wait for one another but to stage rows: each puts its share of a unit into a
// slot, and the slot's own warp adds the shares up while the next units are multiplied.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/piece_stream.h"
#include "cuda/device/routing.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/named_barrier.h"

namespace gptoss::cuda {

// Hands a slot of shares from the warps that multiply to the one that finishes, and back.
template <bool kUseMbarrier, int kGivers>
class SlotBarriers {
 public:
  static constexpr int kBytes = 2 * kFinishWarps * 8;

  __device__ explicit SlotBarriers(std::uint64_t* barriers) : barriers_(barriers) {}
  // By one thread, before a barrier of the block.
  __device__ void init() const {
    if constexpr (kUseMbarrier) {
      for (int slot = 0; slot < kFinishWarps; ++slot) {
        ptx::mbarrier_init(full(slot), kGivers);
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
  static constexpr int kHandOver = (kGivers + 1) * kWarp;
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
  int step;
  UnitCursor cursor;

  __device__ const std::uint8_t* operator()() {
    const std::uint8_t* at = weight.data +
                             routing.items[cursor.item()].expert * weight.expert_bytes() +
                             cursor.tile() * tile_bytes;
    cursor.advance(step);
    return at;
  }
};

template <int kTokens, RingCopy kCopy>
class ExpertStream {
 public:
  // With one row a piece's activations stay in registers: a warp has one piece of each unit.
  static constexpr int kGroups = kTokens == 1 ? 1 : kExpertGroups;
  static_assert(kFinishWarps % kGroups == 0,
                "a slot is one group's: parities tell two rounds apart");
  static constexpr bool kIsBulk = WeightRing<kCopy, kMxStages>::kIsBulk;
  using Stream = std::conditional_t<kIsBulk, ChunkStream<kGroups>, PieceStream<kGroups, kCopy>>;
  using Barriers = SlotBarriers<kIsBulk, kMxWarps / kGroups>;

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
  static_assert(Stream::kRingBytes == ChunkStream<kGroups>::kRingBytes &&
                    Stream::kBarrierBytes <= ChunkStream<kGroups>::kBarrierBytes,
                "expert_smem_bytes serves both streams");
  static constexpr std::size_t bytes(int num_pairs) {
    return kRows + static_cast<std::size_t>(kRowsStaged) * activation_row_bytes(num_pairs);
  }

  // By all threads; a barrier of the block follows.
  __device__ ExpertStream(const MxTiles& weight, const Routing& routing, std::uint8_t* smem)
      : weight_(weight),
        routing_(routing),
        smem_(smem),
        barriers_(reinterpret_cast<std::uint64_t*>(smem + kBarriers)) {
    if (threadIdx.x != 0) return;
    barriers_.init();
    if constexpr (kIsBulk) Stream::init(smem + kRingBarriers);
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
  // token. Rows are asked for before the first weights: behind those they would come late.
  template <class Source>
  __device__ __forceinline__ void multiply(const __nv_bfloat16* x, const Source& source) {
    const int num_tiles = static_cast<int>(weight_.row_tiles());
    const int group = static_cast<int>(threadIdx.x) / kWarp / Stream::kGroupWarps;
    UnitCursor cursor(first_unit_, num_tiles);
    int end = num_units_ > 0 ? stage(x, source, cursor.item()) : 0;
    Stream stream(smem_ + kRingBarriers, smem_, static_cast<int>(weight_.cols));
    TileOfItem locate = tiles(group, kGroups);
    if constexpr (kIsBulk) {
      ptx::named_barrier_arrive<(kMxWarps + 1) * kWarp>(kRowsAsked);
    } else {
      stream.start((num_units_ - group + kGroups - 1) / kGroups, locate);
    }
    MxProduct<1> one;
    int unit = 0;
    while (unit < num_units_) {
      if (unit > 0) {
        sync();  // everybody has multiplied the rows that were there
        end = stage(x, source, cursor.item());
        one.forget();
      }
      copies_landed();
      sync();             // the rows, before they are read
      int first_row = 0;  // of the item
      for (int item = cursor.item(); unit < num_units_ && item < end; item = cursor.item()) {
        const int count = kTokens == 1 ? 1 : routing_.items[item].count();
        const int units = min(num_units_ - unit, num_tiles - cursor.tile());
        const int first = (group - unit % kGroups + kGroups) % kGroups;
        if (kTokens == 1) {
          multiply_item<1>(stream, one, locate, first_row, count, unit + first, unit + units);
        } else if (kTokens <= 8 || count <= 8) {
          MxProduct<8> product;
          multiply_item<8>(stream, product, locate, first_row, count, unit + first, unit + units);
        } else {
          MxProduct<kTokens> product;
          multiply_item<kTokens>(stream, product, locate, first_row, count, unit + first,
                                 unit + units);
        }
        unit += units;
        cursor.advance(units);
        first_row += count;
      }
    }
  }

  // The warp kExpertFillWarp: asks for weights.
  __device__ __forceinline__ void fill() {
    if constexpr (kIsBulk) {
      ptx::named_barrier_sync<(kMxWarps + 1) * kWarp>(kRowsAsked);
      if (threadIdx.x % kWarp != 0) return;
      Stream stream(smem_ + kRingBarriers, smem_, static_cast<int>(weight_.cols));
      TileOfItem locate = tiles(0, 1);
      stream.fill(num_units_, locate);
    }
  }

  // The kFinishWarps warps from kMxWarps on: prepare(item, tile) before a unit's sums are there,
  // then finish(prepared, item, tile, sums), sums(token, row) being the product's.
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
  static constexpr int kRowsAsked = 2 + 2 * kFinishWarps;  // a barrier's number

  __device__ static void sync() { ptx::named_barrier_sync<kMxWarps * kWarp>(1); }

  // The block's units from its first-th on, every step-th.
  __device__ TileOfItem tiles(int first, int step) const {
    TileOfItem locate{routing_, weight_, weight_.k_chunks() * kMxRecordBytes, step,
                      UnitCursor(first_unit_, static_cast<int>(weight_.row_tiles()))};
    locate.cursor.advance(first);
    return locate;
  }

  // Asks for rows of the items from `first` on, as many as there is room for (one item at least);
  // returns the item after them.
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
    copy_fragments<kMxWarps * kWarp>(smem_ + kRows, x, num_pairs, num_rows,
                                     [&](int row) { return __shfl_sync(kAllLanes, from, row); });
    return item;
  }

  // Units first, first + kGroups ... below `end`, of one item.
  template <int kCount, class Product, class Locate>
  __device__ __forceinline__ void multiply_item(Stream& stream, Product& product, Locate& locate,
                                                int first_row, int count, int first, int end) {
    constexpr int kTiles = kTokenTilesOf<kCount>;
    const std::uint32_t row_bytes = activation_row_bytes(2 * static_cast<int>(weight_.k_chunks()));
    const uint4* x[kTiles];
    point_at_rows<kTiles>(x, smem_ + kRows, row_bytes, count,
                          [&](int token) { return first_row + token; });
    float* to = reinterpret_cast<float*>(smem_ + kShares) + threadIdx.x % 4 * 2 * kTokenFloats +
                threadIdx.x % kWarp / 4;
#pragma unroll 1
    for (int unit = first; unit < end; unit += kGroups) {
      const int slot = unit % kFinishWarps;
      const auto put = [&](int share, const float (&sums)[kTiles][4]) {
        float* at = to + slot * kSlotFloats + share * kTileRows;
        if (share < Stream::kGroupWarps) barriers_.wait_empty(slot, unit / kFinishWarps);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (8 * t + 2 * static_cast<int>(threadIdx.x % 4) + i >= count) continue;
            at[(8 * t + i) * kTokenFloats] = sums[t][i];
            at[(8 * t + i) * kTokenFloats + 8] = sums[t][2 + i];
          }
        }
      };
      if constexpr (kIsBulk) {
        stream.template multiply<kCount>(product, x, put);
      } else {
        stream.template multiply<kCount>(product, x, locate, put);
      }
      barriers_.put_full(slot);
    }
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
