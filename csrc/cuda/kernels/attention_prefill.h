// How attention_prefill cuts a ragged batch into tiles: the queries of one kv head in a segment,
// [rows][query heads of the kv head] flattened, in pieces of consecutive queries, so that all heads
// share each key and value read. Tiles of a row's neighbours do not change its result: key blocks
// are pages, and a page out of a row's sight changes none of its sums.
#pragma once

#include <cstdint>

#include "cuda/kernels/attention.h"

namespace gptoss::cuda {

struct QueryTile {
  int segment = -1;     // -1: nothing to do
  int first_query = 0;  // of the segment: row * heads + head
  int num_queries = 0;  // of the segment
};

// Tiles before a segment's first, at most; the gaps are empty tiles.
__host__ __device__ inline std::int64_t tiles_before(std::int64_t row, int segment, int heads,
                                                     int tile_queries) {
  return row * heads / tile_queries + segment;
}

// A tile by its number, less than tiles_before(num_rows, num_segments, ...). Segments of one row
// have none: attention_single_rows takes them.
__device__ inline QueryTile find_query_tile(const StepView& step, std::int64_t index, int heads,
                                            int tile_queries) {
  int low = 0;
  int high = step.num_segments;  // the tile's segment is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    const auto before = tiles_before(step.segments[middle].first_row, middle, heads, tile_queries);
    (before <= index ? low : high) = middle;
  }
  const SegmentInfo& segment = step.segments[low];
  const std::int64_t first =
      (index - tiles_before(segment.first_row, low, heads, tile_queries)) * tile_queries;
  const std::int64_t queries = std::int64_t{segment.num_rows} * heads;
  if (segment.num_rows == 1 || first >= queries) return {};
  return {low, static_cast<int>(first), static_cast<int>(queries)};
}

// Keys that some query of a tile sees, and the pages they stand in.
struct TileKeys {
  int first_position;  // of the tile's first query
  int last_position;
  int first;  // key
  int first_page;
  int end_page;

  __device__ TileKeys(const SegmentInfo& segment, const QueryTile& tile, int heads,
                      int tile_queries, int window) {
    const int last_query = min(tile.first_query + tile_queries, tile.num_queries) - 1;
    first_position = segment.position + tile.first_query / heads;
    last_position = segment.position + last_query / heads;
    first = window > 0 ? max(0, first_position - window + 1) : 0;
    first_page = first / static_cast<int>(kPageTokens);
    end_page = last_position / static_cast<int>(kPageTokens) + 1;
  }
  // Some query of the tile does not see all keys of the page.
  __device__ bool is_edge(int page, int window) const {
    const int begin = page * static_cast<int>(kPageTokens);
    return begin + static_cast<int>(kPageTokens) - 1 > first_position ||
           (window > 0 && begin < last_position - window + 1);
  }
};

// Segments of several rows: any device; Hopper.
void attention_prefill_portable(const AttentionArgs& args, cudaStream_t stream);
void attention_prefill_sm90(const AttentionArgs& args, cudaStream_t stream);

// Windows below this are left to the portable kernel, whose tiles are smaller: 8,192 rows with a
// window of 128 took 153 us there and 203 us here, without one 1,741 and 1,363 (H200, 64 heads).
constexpr int kWideWindow = 1024;
inline bool supports_attention_prefill_sm90(const AttentionArgs& args, const DeviceInfo& device) {
  if (device.compute_capability != 90) return false;  // warpgroup products exist on no other
  return args.window == 0 || args.window >= kWideWindow;
}

}  // namespace gptoss::cuda
