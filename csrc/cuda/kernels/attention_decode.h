// How attention_decode splits a row's keys, and its launch for the rows of a large batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/kernels/attention.h"

namespace gptoss::cuda {

constexpr int kMaxPieces = 32;
// Smallest pieces. In the small regime 128 keys, one group a warp: at 512 tokens the time is
// latency. With 33 rows or more there are blocks enough, and longer pieces cost fewer merges: 256
// rows at 1,536 tokens took 202 us at 1,024 keys a piece, 189 at 2,048 (H200).
constexpr int kSmallPiece = 128;
constexpr int kLargePiece = 2048;
// Up to this many pieces can be merged within a cluster of blocks; up to this position they are.
constexpr int kClusterPieces = 8;
constexpr int kClusterPositions = 4096;
constexpr int kClusterRows = 4;  // of a launch: more fill the device without
// Windows up to this are one piece, whole.
constexpr int kUnsplitWindow = 256;
constexpr int kWholePiece = 1 << 30;

// Keys of a piece, which begins at a multiple of it: at most kMaxPieces pieces (kClusterPieces up
// to kClusterPositions), chosen by the row's position alone.
__host__ __device__ constexpr int piece_keys(int position, int window, int min_piece) {
  if (window > 0 && window <= kUnsplitWindow) return kWholePiece;
  const bool sliding = window > 0 && window <= position;
  const int keys = sliding ? window : position + 1;
  const int most = position < kClusterPositions ? kClusterPieces : kMaxPieces;
  const int pieces = sliding ? most - 1 : most;  // a window may begin inside a piece
  int piece = min_piece;
  while (piece < (keys + pieces - 1) / pieces) piece *= 2;
  return piece;
}

// Most pieces of any position up to max_position.
constexpr int max_pieces(int max_position, int window, int min_piece) {
  if (window > 0 && window <= kUnsplitWindow) return 1;
  const int most = max_position < kClusterPositions ? kClusterPieces : kMaxPieces;
  return std::min(most, max_position / min_piece + 1);
}

// The segments of one row each in a batch of any kind; others are passed over. Begins to read old
// keys before the kernel before it has ended.
void attention_single_rows(const AttentionArgs& args, const DeviceInfo& device,
                           cudaStream_t stream);

// The same where the window is at most kUnsplitWindow.
void attention_single_rows_window(const AttentionArgs& args, Dependence dependence,
                                  cudaStream_t stream);

}  // namespace gptoss::cuda
