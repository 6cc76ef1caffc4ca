// Merges of a row's softmax: of a block's warps, and of a row's pieces after its sink, through
// global memory or across a cluster. Both of the latter give the same bits: exponents relative to
// the largest of all, terms in the order sink, piece 0, 1, ...
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/attention_group.h"
#include "cuda/device/reduce.h"
#include "cuda/kernels/attention_decode.h"
#include "cuda/ptx/cluster.h"

namespace gptoss::cuda {

constexpr int kMergeWarps = 4;
constexpr int kMergeThreads = kMergeWarps * kWarp;
// Rows of a warp's state in shared memory stand 8 banks apart: 8-byte stores of four rows do not
// meet. The norms (max, sum) of all rows follow.
constexpr int kMergeStride = static_cast<int>(kHeadDim) + 8;
constexpr int kMergeBytes = (kHeadTile * kMergeStride + 2 * kHeadTile) * 4;

// The heads of a row whose result a block makes.
struct HeadTile {
  const AttentionArgs& args;
  int row;
  int first_head;
  int num_heads;

  // Four dims from `dim` on of the tile's head `head`, times `factor`.
  __device__ void store(int head, int dim, const float4& out, float factor) const {
    const uint2 packed{pack_bf16x2(out.x * factor, out.y * factor),
                       pack_bf16x2(out.z * factor, out.w * factor)};
    const std::int64_t of_row = static_cast<std::int64_t>(row) * args.num_heads;
    *reinterpret_cast<uint2*>(args.out + (of_row + first_head + head) * kHeadDim + dim) = packed;
  }
  __device__ float sink(int head) const { return sink_exponent(args.sinks[first_head + head]); }
};

// Where pieces of all heads meet: of the row's slot `piece`, [num_heads][64] and [num_heads].
struct PieceSlots {
  float* out;    // before division
  float2* norm;  // max, sum
};

// A row's softmax before division, four dims of it.
struct Partial {
  float4 out;
  float max;
  float sum;
};

__device__ __forceinline__ void scale_add(float4& to, float factor, const float4& from) {
  to.x = fmaf(factor, from.x, to.x);
  to.y = fmaf(factor, from.y, to.y);
  to.z = fmaf(factor, from.z, to.z);
  to.w = fmaf(factor, from.w, to.w);
}

// A warp's state to its place in shared memory.
template <int kHalves>
__device__ __forceinline__ void put_state(const WarpSoftmax<kHalves>& state, void* place,
                                          int lane) {
  auto* mine = static_cast<float*>(place);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int row = half * 8 + lane / 4;
#pragma unroll
    for (int tile = 0; tile < kDimTiles; ++tile) {
      *reinterpret_cast<float2*>(mine + row * kMergeStride + tile * 8 + lane % 4 * 2) =
          float2{state.out[tile][2 * half], state.out[tile][2 * half + 1]};
    }
    const float sum = quad_sum(state.sum[half]);
    if (lane % 4 == 0) {
      reinterpret_cast<float2*>(mine + kHeadTile * kMergeStride)[row] =
          float2{state.max[half], sum};
    }
  }
}

// The warps' states, `warp_bytes` apart, become one: four dims of row `row`.
__device__ __forceinline__ Partial merge_warps(const std::uint8_t* smem, int warp_bytes, int row,
                                               int dim) {
  const auto area = [&](int warp) {
    return reinterpret_cast<const float*>(smem + warp * warp_bytes);
  };
  const auto norm = [&](int warp) {
    return reinterpret_cast<const float2*>(area(warp) + kHeadTile * kMergeStride)[row];
  };
  Partial merged{{0, 0, 0, 0}, kMinusInfinity, 0.0f};
#pragma unroll
  for (int warp = 0; warp < kMergeWarps; ++warp) merged.max = fmaxf(merged.max, norm(warp).x);
  const float base = exponent_base(merged.max);
#pragma unroll
  for (int warp = 0; warp < kMergeWarps; ++warp) {
    const float factor = ptx::exp2_approx(norm(warp).x - base);
    merged.sum = fmaf(factor, norm(warp).y, merged.sum);
    scale_add(merged.out, factor,
              *reinterpret_cast<const float4*>(area(warp) + row * kMergeStride + dim));
  }
  return merged;
}

// All pieces of the tile's heads, from global memory, where a piece's slots stand num_heads apart.
// They come through shared memory, `smem_bytes` of it, so that one latency is paid and not one a
// piece. By the whole block.
__device__ __forceinline__ void merge_pieces(const HeadTile& tile, const PieceSlots& slots,
                                             int num_pieces, std::uint8_t* smem, int smem_bytes) {
  constexpr int kDim = static_cast<int>(kHeadDim);
  constexpr int kRows = 8;  // at a time: a row's four dims a thread
  constexpr int kRowBytes = kDim * 4;
  static_assert(kMergeThreads == kRows * kDim / 4);
  static_assert(kMaxPieces == kWarp);
  __shared__ float2 norms[kMaxPieces][kRows];  // weight, sum
  const std::int64_t stride = tile.args.num_heads;
  const int thread = static_cast<int>(threadIdx.x);
  const int my_row = thread / (kMergeThreads / kRows);
  const int my_chunk = thread % (kMergeThreads / kRows);
  const int lane = thread % kWarp;
  const int at_once = smem_bytes / (kRows * kRowBytes);
  const auto place = [&](int piece) {
    return smem + (piece * kRows + my_row) * kRowBytes + my_chunk * kCopyBytes;
  };
  for (int first_row = 0; first_row < tile.num_heads; first_row += kRows) {
    const int rows = min(kRows, tile.num_heads - first_row);
    const std::int64_t first = tile.first_head + first_row;
    const auto copy = [&](int begin, int end) {
      for (int piece = begin; piece < end && my_row < rows; ++piece) {
        ptx::cp_async_16(place(piece - begin),
                         slots.out + (piece * stride + first + my_row) * kDim + my_chunk * 4);
      }
      ptx::cp_async_commit();
    };
    copy(0, min(at_once, num_pieces));
    // Lane p weighs piece p of the two rows that its warp sums.
    const int row = thread / kWarp * 2;
    float sums[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = row + i < rows && lane < num_pieces;
      const float2 norm = there ? __ldcg(slots.norm + lane * stride + first + row + i)
                                : float2{kMinusInfinity, 0.0f};
      const float sink = row + i < rows ? tile.sink(first_row + row + i) : 0.0f;
      const float base = exponent_base(fmaxf(sink, warp_max(norm.x)));
      if (there) norms[lane][row + i] = float2{ptx::exp2_approx(norm.x - base), norm.y};
      sums[i] = ptx::exp2_approx(sink - base);
    }
    __syncwarp();  // the warp's weights are there
    float sum = lane < kWarp / 2 ? sums[0] : sums[1];
    float4 out{0, 0, 0, 0};
    for (int begin = 0; begin < num_pieces; begin += at_once) {
      const int end = min(begin + at_once, num_pieces);
      if (begin > 0) copy(begin, end);
      ptx::cp_async_wait<0>();  // each thread reads only what it has copied
      if (my_row >= rows) continue;
#pragma unroll 8
      for (int piece = begin; piece < end; ++piece) {
        const float2 norm = norms[piece][my_row];
        sum = fmaf(norm.x, norm.y, sum);
        scale_add(out, norm.x, *reinterpret_cast<const float4*>(place(piece - begin)));
      }
    }
    if (my_row < rows) tile.store(first_row + my_row, my_chunk * 4, out, 1.0f / sum);
    __syncwarp();  // all lanes have read the weights before the next rows'
  }
}

// What a block shows to its cluster.
struct PieceResult {
  float out[kHeadTile][kHeadDim];
  float2 norm[kHeadTile];  // max, sum
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Every num_pieces-th of the tile's heads from this block's `piece` on, half a warp each.
__device__ __forceinline__ void merge_cluster(const HeadTile& tile, const PieceResult& mine,
                                              int piece, int num_pieces) {
  const int dim = static_cast<int>(threadIdx.x) % 16 * 4;
  for (int i = piece + static_cast<int>(threadIdx.x) / 16 * num_pieces; i < tile.num_heads;
       i += kMergeThreads / 16 * num_pieces) {
    float2 norms[kClusterPieces];
    float4 outs[kClusterPieces];
#pragma unroll
    for (int p = 0; p < kClusterPieces; ++p) {
      if (p >= num_pieces) break;
      const PieceResult* other = ptx::map_to_rank(&mine, static_cast<unsigned>(p));
      norms[p] = other->norm[i];
      outs[p] = *reinterpret_cast<const float4*>(&other->out[i][dim]);
    }
    const float sink = tile.sink(i);
    float max = sink;
#pragma unroll
    for (int p = 0; p < kClusterPieces; ++p) {
      if (p < num_pieces) max = fmaxf(max, norms[p].x);
    }
    const float base = exponent_base(max);
    float sum = ptx::exp2_approx(sink - base);
    float4 out{0, 0, 0, 0};
#pragma unroll
    for (int p = 0; p < kClusterPieces; ++p) {
      if (p >= num_pieces) break;
      const float factor = ptx::exp2_approx(norms[p].x - base);
      sum = fmaf(factor, norms[p].y, sum);
      scale_add(out, factor, outs[p]);
    }
    tile.store(i, dim, out, 1.0f / sum);
  }
}
#endif

}  // namespace gptoss::cuda
