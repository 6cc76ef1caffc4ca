// The Hopper product out^T = W * x^T for a handful of tokens an expert, MXFP4 weights: reading and
// decoding them is the work, so every multiprocessor gets the same share of them, and as many warps
// as fit decode them, each on its own.
//
// A block (gemm_pieces_sm90.h) takes up to eight row tiles at a time, three warps each: a producer
// brings stages of 576 columns to shared memory, three warps decode a third each of their 16 rows,
// multiply by mma.sync and add up what they have at the end. A row tile's part of a stage is one
// copy of 4,896 bytes: the copy engine takes 45 ns for each, however small (H200: 544 bytes 1.6
// TB/s, 1,632 bytes 3.9, 4,896 bytes 4.2). Sums along K run in one order, wherever the cuts lie.
#pragma once

#include <cstdint>

#include "cuda/device/gemm_pieces_sm90.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/named_barrier.h"

namespace gptoss::cuda {

struct StreamShape {
  static constexpr int kTiles = 8;  // row tiles at a time
  static constexpr int kParts = 3;  // warps of a row tile
  static constexpr int kWarps = kTiles * kParts;
  static constexpr int kThreads = (kWarps + 1) * kWarp;
  static constexpr int kMaxTokens = 16;
  static constexpr int kPartChunks = 3;  // of 64 columns, of a stage, a warp
  static constexpr int kChunks = kParts * kPartChunks;
  static constexpr int kTokenChunkBytes = kMaxTokens * kTokenRowBytes;
  static constexpr int kTokenBytes = kChunks * kTokenChunkBytes;
  static constexpr int kWeightTileBytes = kChunks * kMxRecordBytes;
  // Tokens, weights, and the stage's two barriers; the next stage begins at a multiple of 1,024.
  static constexpr int kFull = kTokenBytes + kTiles * kWeightTileBytes;
  static constexpr int kEmpty = kFull + 8;
  static constexpr int kStageBytes = (kFull + 16 + 1023) / 1024 * 1024;
  static constexpr int kStages = 3;
  // Sums of a row tile's other warps: [kTiles][kParts - 1][tokens / 8][32 lanes] float4.
  static constexpr int kSums = 1024 + kStages * kStageBytes;
  static constexpr int kSmemBytes = kSums + kTiles * (kParts - 1) * kMaxTokens / 8 * kWarp * 16;
  static_assert(kSmemBytes <= 227 * 1024);
};

struct StreamArgs {
  CUtensorMap token_map;
  const std::uint8_t* weights;
  std::int32_t num_chunks;  // 64 columns each
  GemmArgs gemm;
};

using StreamRing = PieceRing<StreamShape>;
using StreamWalk = PieceWalk<StreamShape::kTiles>;

// One warp.
__device__ __forceinline__ void produce_stream(StreamRing ring, const StreamArgs& args) {
  const GemmArgs& gemm = args.gemm;
  bool waited = !gemm.early;
  if (waited) ptx::wait_for_dependencies();
  const std::int64_t tile_bytes = static_cast<std::int64_t>(args.num_chunks) * kMxRecordBytes;
  StreamWalk walk(gemm);
  if (threadIdx.x % kWarp > 0) return;
  Piece piece;
  while (walk.next(piece)) {
    const std::uint8_t* weights =
        args.weights +
        (static_cast<std::int64_t>(piece.tokens.expert) * gemm.row_tiles + piece.first) *
            tile_bytes;
    produce_piece(
        ring, gemm.num_stages, waited,
        [&](std::int32_t k, const StreamRing& at) {
          const std::int32_t chunks =
              min(StreamShape::kChunks, args.num_chunks - k * StreamShape::kChunks);
          const std::uint32_t num_bytes = chunks * kMxRecordBytes;
          at.wait_empty();
          ptx::mbarrier_arrive_expect_bytes(at.full(),
                                            piece.count * num_bytes + StreamShape::kTokenBytes);
          const std::uint32_t to = at.stage + StreamShape::kTokenBytes;
          const std::uint8_t* from = weights + k * StreamShape::kWeightTileBytes;
          for (std::int32_t tile = 0; tile < piece.count; ++tile) {
            ptx::bulk_copy(to + tile * StreamShape::kWeightTileBytes, from + tile * tile_bytes,
                           num_bytes, at.full());
          }
        },
        [&](std::int32_t k, const StreamRing& at) {
          ptx::tma_load(at.stage, &args.token_map, 0, piece.tokens.begin, k * StreamShape::kChunks,
                        at.full());
        });
  }
}

// Where this lane reads, from the beginning of a stage: its warp's weights, and rows of tokens for
// ldmatrix. 16-byte unit u of token row r stands at u ^ r % 8.
struct StreamLane {
  std::uint32_t codes;
  std::uint32_t scales;
  std::uint32_t tokens;  // one of 16 tokens, of 16 columns; or of the first 8, of 32 columns

  __device__ StreamLane(int warp, int lane, int eights) {
    const int part = warp % StreamShape::kParts;
    const int record = StreamShape::kTokenBytes +
                       warp / StreamShape::kParts * StreamShape::kWeightTileBytes +
                       part * StreamShape::kPartChunks * kMxRecordBytes;
    codes = record + lane * 16;
    scales = record + kMxCodeBytes + lane / 4 * 4;
    const int row = lane % 8;
    const int matrix = lane / 8;
    const int token = eights == 1 ? row : matrix / 2 * 8 + row;
    const int unit = eights == 1 ? matrix : matrix % 2;
    tokens = part * StreamShape::kPartChunks * StreamShape::kTokenChunkBytes +
             token * kTokenRowBytes + (unit ^ row) * 16;
  }
};

// The products of a chunk for 8 or 16 tokens.
template <int kEights>
__device__ __forceinline__ void multiply_chunk(const Fragments& a, std::uint32_t tokens,
                                               float (&d)[kEights][4]) {
  if constexpr (kEights == 2) {
#pragma unroll
    for (int step = 0; step < kStageSteps; ++step) {
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, tokens ^ step * 32);
      ptx::mma_m16n8k16(d[0], a[step], b[0], b[1]);
      ptx::mma_m16n8k16(d[1], a[step], b[2], b[3]);
    }
  } else {
    static_assert(kEights == 1);
#pragma unroll
    for (int step = 0; step < kStageSteps; step += 2) {
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, tokens ^ step * 32);
      ptx::mma_m16n8k16(d[0], a[step], b[0], b[1]);
      ptx::mma_m16n8k16(d[0], a[step + 1], b[2], b[3]);
    }
  }
}

// A warp's chunks of a stage, `count` of them.
template <int kEights, bool kLargeScales>
__device__ __forceinline__ void multiply_part(const StreamLane& at, std::uint32_t stage,
                                              std::int32_t count, const std::uint32_t (&scales)[3],
                                              float (&d)[kEights][4]) {
#pragma unroll
  for (int chunk = 0; chunk < StreamShape::kPartChunks; ++chunk) {
    if (chunk >= count) break;
    Fragments a;
    decode_mxfp4<kLargeScales>(ptx::load_shared_16(stage + at.codes + chunk * kMxRecordBytes),
                               scales[chunk], a);
    multiply_chunk<kEights>(a, stage + at.tokens + chunk * StreamShape::kTokenChunkBytes, d);
  }
}

// The sums of a row tile's warps to its first, in order.
template <int kEights>
__device__ __forceinline__ void add_stream_parts(float4* sums, int tile, int part,
                                                 float (&d)[kEights][4]) {
  constexpr int kThreads = StreamShape::kParts * kWarp;
  constexpr int kTileSums = (StreamShape::kParts - 1) * StreamShape::kMaxTokens / 8 * kWarp;
  float4* mine = sums + tile * kTileSums + threadIdx.x % kWarp;
  ptx::named_barrier_sync<kThreads>(1 + tile);  // those before are read
  if (part > 0) {
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      mine[((part - 1) * kEights + i) * kWarp] = make_float4(d[i][0], d[i][1], d[i][2], d[i][3]);
    }
  }
  ptx::named_barrier_sync<kThreads>(1 + tile);  // they are there
  if (part > 0) return;
#pragma unroll
  for (int i = 0; i < (StreamShape::kParts - 1) * kEights; ++i) {
    const float4 v = mine[i * kWarp];
    float (&sum)[4] = d[i % kEights];
    sum[0] += v.x;
    sum[1] += v.y;
    sum[2] += v.z;
    sum[3] += v.w;
  }
}

// A warp's third of a row tile.
template <int kEights, TileOutput kOutput>
__device__ __forceinline__ void multiply_stream(StreamRing& ring, const StreamArgs& args,
                                                const Piece& work, int warp, float4* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int tile = warp / StreamShape::kParts;
  const int part = warp % StreamShape::kParts;
  const StreamLane at(warp, lane, kEights);
  const BiasPair bias = load_bias(args.gemm.output, work.tokens.expert, work.first + tile);
  float d[kEights][4] = {};
  std::int32_t left = args.num_chunks - part * StreamShape::kPartChunks;
  for (std::int32_t k = 0; k < args.gemm.num_stages; ++k, left -= StreamShape::kChunks) {
    ring.wait_full();
    // Past the last column lies what an earlier stage left: it is not looked at.
    std::uint32_t scales[StreamShape::kPartChunks];
    std::uint32_t all_scales = 0;
#pragma unroll
    for (int chunk = 0; chunk < StreamShape::kPartChunks; ++chunk) {
      scales[chunk] =
          chunk < left ? ptx::load_shared_4(ring.stage + at.scales + chunk * kMxRecordBytes) : 0;
      all_scales |= scales[chunk];
    }
    // The same in all lanes: they multiply together.
    if (__any_sync(0xffffffffu, (all_scales & kMaybeLargeScales) != 0)) {
      multiply_part<kEights, true>(at, ring.stage, left, scales, d);
    } else {
      multiply_part<kEights, false>(at, ring.stage, left, scales, d);
    }
    __syncwarp();  // all lanes have read the stage
    if (lane == 0) ptx::mbarrier_arrive(ring.empty());
    ring.advance();
  }
  add_stream_parts(sums, tile, part, d);
  if (part > 0) return;
  write_tile<kOutput, kEights>(args.gemm.output, bias, work.first + tile, work.tokens.begin,
                               work.tokens.count, reinterpret_cast<float (&)[4 * kEights]>(d));
}

template <TileOutput kOutput>
__device__ __forceinline__ void consume_stream(StreamRing ring, const StreamArgs& args, int warp,
                                               float4* sums) {
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  StreamWalk walk(args.gemm);
  Piece work;
  while (walk.next(work)) {
    if (warp / StreamShape::kParts >= work.count) {  // no row tile for this warp
      ring.pass(args.gemm.num_stages);
    } else if (work.tokens.count <= 8) {
      multiply_stream<1, kOutput>(ring, args, work, warp, sums);
    } else {
      multiply_stream<2, kOutput>(ring, args, work, warp, sums);
    }
  }
}

template <TileOutput kOutput>
__device__ __forceinline__ void gemm_stream_block(const StreamArgs& args) {
  extern __shared__ __align__(16) std::uint8_t raw_smem[];
  const StreamRing ring(raw_smem);
  if (threadIdx.x == 0) {
    ring.init();
    ptx::tma_prefetch_map(&args.token_map);
  }
  __syncthreads();  // the barriers exist
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp == StreamShape::kWarps) {
    produce_stream(ring, args);
  } else {
    consume_stream<kOutput>(ring, args, warp,
                            reinterpret_cast<float4*>(raw_smem + StreamShape::kSums));
  }
}

}  // namespace gptoss::cuda
