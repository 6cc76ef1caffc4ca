// The weights of experts' tiles on their way to the warps that multiply them.
#pragma once

#include <cstdint>

#include "cuda/device/small_product.h"
#include "cuda/device/weight_ring.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/ptx/mbarrier.h"

namespace gptoss::cuda {

// A warp's pieces of every kGroups-th unit. A group of warps has a unit; of its pieces, which are
// numbered along K, those whose number is p modulo kMxWarps are added up as the unit's share p, and
// the shares are dealt out to the group's warps in turn. So what is added, and in which order,
// depends on the shape of the matrix and on nothing else.
template <int kGroups, RingCopy kCopy>
class PieceStream {
 public:
  static_assert(kMxWarps % kGroups == 0);
  static constexpr int kGroupWarps = kMxWarps / kGroups;
  static constexpr std::uint32_t kPieceBytes = kMxPiece * kMxRecordBytes;
  // None: copies that a thread waits for itself. (The host asks for ChunkStream's bytes, which must
  // not be fewer.)
  static constexpr std::uint32_t kBarrierBytes = 0;
  static constexpr std::uint32_t kRingBytes = kMxWarps * kMxStages * kPieceBytes;

  __device__ PieceStream(std::uint8_t* barriers, std::uint8_t* ring, int columns)
      : first_share_(static_cast<int>(threadIdx.x) / kWarp % kGroupWarps),
        num_records_((columns + kMxChunk - 1) / kMxChunk),
        num_pieces_((num_records_ + kMxPiece - 1) / kMxPiece),
        ring_(ring + threadIdx.x / kWarp * kMxStages * kPieceBytes, kPieceBytes,
              reinterpret_cast<std::uint64_t*>(barriers) + threadIdx.x / kWarp * kMxStages) {}

  // Asks for the first stages of `num_units` units; locate() is the address of the next one.
  template <class Locate>
  __device__ void start(int num_units, Locate& locate) {
    unasked_ = first_share_ < num_pieces_ ? num_units : 0;
    if (unasked_ > 0) tile_ = locate();
    fill_share_ = fill_piece_ = first_share_;
#pragma unroll 1
    for (int stage = 0; stage < kMxStages; ++stage) fill_next(locate);
  }

  // put(share, sums) for the warp's shares of the next unit.
  template <int kTokens, class Product, class Locate, class Put>
  __device__ __forceinline__ void multiply(Product& product,
                                           const uint4* const (&x)[kTokenTilesOf<kTokens>],
                                           Locate& locate, const Put& put) {
#pragma unroll 1
    for (int share = first_share_; share < kMxWarps; share += kGroupWarps) {
#pragma unroll 1
      for (int piece = share; piece < num_pieces_; piece += kMxWarps) {
        const std::uint8_t* stage = ring_.wait();
        const int first = piece * kMxPiece;
        if (num_records_ - first >= kMxPiece) {
          product.template multiply<kMxPiece>(stage, kMxPiece, x, first);
        } else {
          product.template multiply<kMxPiece>(stage, num_records_ - first, x, first);
        }
        ring_.release();
        fill_next(locate);
      }
      float sums[kTokenTilesOf<kTokens>][4];
      product.result(sums);
      put(share, sums);
    }
  }

 private:
  template <class Locate>
  __device__ __forceinline__ void fill_next(Locate& locate) {
    if (unasked_ <= 0) {
      ring_.fill(nullptr, 0);
      return;
    }
    const int num_records = min(kMxPiece, num_records_ - fill_piece_ * kMxPiece);
    ring_.fill(tile_ + fill_piece_ * kPieceBytes,
               static_cast<std::uint32_t>(num_records * kMxRecordBytes));
    fill_piece_ += kMxWarps;
    if (fill_piece_ < num_pieces_) return;
    fill_share_ += kGroupWarps;
    if (fill_share_ >= min(kMxWarps, num_pieces_)) {
      fill_share_ = first_share_;
      if (--unasked_ > 0) tile_ = locate();
    }
    fill_piece_ = fill_share_;
  }

  int first_share_;
  int num_records_;
  int num_pieces_;
  int unasked_ = 0;  // units not wholly asked for
  int fill_share_ = 0;
  int fill_piece_ = 0;
  const std::uint8_t* tile_ = nullptr;
  WeightRing<kCopy, kMxStages> ring_;
};

// The same with the copy engine: a warp of its own asks for what the warps of a group read
// together, a piece each, which leaves them little but products.
template <int kGroups>
class ChunkStream {
 public:
  static_assert(kMxWarps % kGroups == 0);
  static constexpr int kGroupWarps = kMxWarps / kGroups;
  static constexpr std::uint32_t kPieceBytes = kMxPiece * kMxRecordBytes;
  static constexpr std::uint32_t kChunkBytes = kGroupWarps * kPieceBytes;
  static constexpr int kStages = kGroups * kMxStages;
  static constexpr std::uint32_t kBarrierBytes = 2 * kStages * 8;
  static constexpr std::uint32_t kRingBytes = kStages * kChunkBytes;

  __device__ ChunkStream(std::uint8_t* barriers, std::uint8_t* ring, int columns)
      : num_records_((columns + kMxChunk - 1) / kMxChunk),
        num_pieces_((num_records_ + kMxPiece - 1) / kMxPiece),
        ring_(ring),
        barriers_(reinterpret_cast<std::uint64_t*>(barriers)) {}

  // By one thread, before a barrier of the block.
  __device__ static void init(std::uint8_t* barriers) {
    for (int stage = 0; stage < kStages; ++stage) {
      const auto* at = reinterpret_cast<std::uint64_t*>(barriers) + 2 * stage;
      ptx::mbarrier_init(ptx::shared_address(at), 1);
      ptx::mbarrier_init(ptx::shared_address(at + 1), kGroupWarps);
    }
    ptx::fence_mbarrier_init();
  }

  // By one thread: all of `num_units` units; locate() is the address of the next one.
  template <class Locate>
  __device__ void fill(int num_units, Locate& locate) {
    const std::uint8_t* tiles[kGroups];
#pragma unroll 1
    for (int first = 0; first < num_units; first += kGroups) {
      const int count = min(kGroups, num_units - first);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (group < count) tiles[group] = locate();
      }
      for_chunks([&](int piece) {
        const int num_records = min(kGroupWarps * kMxPiece, num_records_ - piece * kMxPiece);
        const auto num_bytes = static_cast<std::uint32_t>(num_records * kMxRecordBytes);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          if (group >= count) break;
          const int stage = group * kMxStages + stage_;
          ptx::mbarrier_wait(empty(stage), parity_ ^ 1);
          ptx::mbarrier_arrive_expect_bytes(full(stage), num_bytes);
          ptx::bulk_copy(ring_ + stage * kChunkBytes, tiles[group] + piece * kPieceBytes, num_bytes,
                         barriers_ + 2 * stage);
        }
        advance();
      });
    }
  }

  // put(share, sums) for the warp's shares of its group's next unit.
  template <int kTokens, class Product, class Put>
  __device__ __forceinline__ void multiply(Product& product,
                                           const uint4* const (&x)[kTokenTilesOf<kTokens>],
                                           const Put& put) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp % kGroupWarps;
    const int first_stage = static_cast<int>(threadIdx.x) / kWarp / kGroupWarps * kMxStages;
#pragma unroll 1
    for (int share = 0; share < kMxWarps; share += kGroupWarps) {
#pragma unroll 1
      for (int first = share; first < num_pieces_; first += kMxWarps) {
        const int piece = first + warp;
        const int stage = first_stage + stage_;
        ptx::mbarrier_wait(full(stage), parity_);
        const std::uint8_t* records = ring_ + stage * kChunkBytes + warp * kPieceBytes;
        const int num_records = num_records_ - piece * kMxPiece;
        if (num_records >= kMxPiece) {
          product.template multiply<kMxPiece>(records, kMxPiece, x, piece * kMxPiece);
        } else if (num_records > 0) {
          product.template multiply<kMxPiece>(records, num_records, x, piece * kMxPiece);
        }
        __syncwarp();  // every lane has read
        if (threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(empty(stage));
        advance();
      }
      float sums[kTokenTilesOf<kTokens>][4];
      product.result(sums);
      put(share + warp, sums);
    }
  }

 private:
  // body(first piece) for the chunks of a unit, in the order of multiply().
  template <class Body>
  __device__ __forceinline__ void for_chunks(const Body& body) const {
#pragma unroll 1
    for (int share = 0; share < min(kMxWarps, num_pieces_); share += kGroupWarps) {
#pragma unroll 1
      for (int piece = share; piece < num_pieces_; piece += kMxWarps) body(piece);
    }
  }
  __device__ __forceinline__ void advance() {
    if (++stage_ == kMxStages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }
  __device__ std::uint32_t full(int stage) const {
    return ptx::shared_address(barriers_ + 2 * stage);
  }
  __device__ std::uint32_t empty(int stage) const {
    return ptx::shared_address(barriers_ + 2 * stage + 1);
  }

  int num_records_;
  int num_pieces_;
  std::uint8_t* ring_;
  std::uint64_t* barriers_;
  int stage_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace gptoss::cuda
