// attention: softmax(q.k / 8 with a sink) times v for all query heads of one kv head, paged keys
// and values bf16 or float32 (model/kv_plan.h), q and out float32 [num_tokens][num_heads * 64].
// Reads each page once a tile of queries; 256 operations a query head and visible key.
//
// Scores and values are one product: out[64] += a[i] * b[i][64], i ascending (dims, then keys),
// lanes along keys, then dims. The softmax is online over pages of 64 keys within a piece of
// kSplitTokens; pieces begin afresh at absolute positions and are merged in order, after the sink.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/simd/exp.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr int kHeadVectors = kHeadDim / kLanes;
static_assert(kHeadDim == kPageTokens, "the micro-kernel's rows are 64 wide in both products");
constexpr std::int64_t kPageElements = kHeadDim * kPageTokens;
// Queries of a micro-kernel: their sums fill half the registers or more.
constexpr int kQueryGroup = kAccumulators >= 24 ? 8 : kAccumulators >= 12 ? 4 : 2;
// Queries that share a page; 64 KB of their state stays in L2. At most this many heads a kv head.
constexpr std::int64_t kTileQueries = 128;

struct AttentionScratch {
  float query[kTileQueries * kHeadDim];  // [tokens][heads][64], times 1/8
  float out[kTileQueries * kHeadDim];    // of the piece, before division
  float max[kTileQueries];
  float sum[kTileQueries];
  float merged_max[kTileQueries];
  float merged_sum[kTileQueries];
  float weights[kQueryGroup * kPageTokens];
  float keys[kPageElements];  // a page widened to float32
  float values[kPageElements];
};

// Some heads of a kv head for consecutive tokens.
struct AttentionTile {
  const AttentionArgs* args;
  std::int64_t kv_head;
  std::int64_t heads;  // of this kv head
  Range tokens;

  GPTOSS_INLINE std::int64_t queries() const { return tokens.size() * heads; }
  GPTOSS_INLINE float* out(std::int64_t token, std::int64_t head) const {
    return args->out.row(token) + (kv_head * heads + head) * kHeadDim;
  }
};

// The page that follows, fetched while this one is met. Its halves of keys and of values are
// fetched side by side, since a processor's prefetcher works within pages of 4 KB: one core of a
// Xeon meets 10.5 GB/s of keys and values so, 7.4 fetching the next 8 KB in order.
template <typename Element>
struct NextPage {
  const Element* keys;  // null: all is in cache already
  const Element* values;

  static constexpr std::int64_t kLine = 64 / sizeof(Element);

  // Of row `row` of kStrip elements among all rows of a page's two products.
  template <int kStrip>
  GPTOSS_INLINE void fetch(std::int64_t row) const {
    if (keys == nullptr) return;
    const std::int64_t begin = (row * kStrip + kLine - 1) / kLine;
    const std::int64_t end = ((row + 1) * kStrip + kLine - 1) / kLine;
    for (std::int64_t line = begin; line < end; ++line) {
      const Element* half = (line & 2 ? values : keys) + (line & 1) * (kPageElements / 2);
      __builtin_prefetch(half + line / 4 * kLine, 0, 2);
    }
  }
};

template <typename Element>
struct PageView {
  const Element* keys;    // [64 dims][64 keys]
  const Element* values;  // [64 keys][64 dims]
  NextPage<Element> next;
};

constexpr float kMinusInfinity = -__builtin_inff();
// Keys that a token sees among `keys`; empty ranges have end <= begin.
GPTOSS_INLINE Range visible_keys(const AttentionArgs& args, std::int64_t token, Range keys) {
  const std::int64_t position = args.position + token;
  const std::int64_t oldest = args.window > 0 ? position - args.window + 1 : 0;
  return {keys.begin > oldest ? keys.begin : oldest,
          keys.end < position + 1 ? keys.end : position + 1};
}
GPTOSS_INLINE Range piece_keys(std::int64_t piece) {
  return {piece * kSplitTokens, (piece + 1) * kSplitTokens};
}

// Vectors of a row of 64 that a group of queries computes at a time.
constexpr int strip_vectors(int queries) {
  int vectors = kHeadVectors;
  while (vectors > 1 && vectors * queries > kAccumulators) vectors /= 2;
  return vectors;
}

// sums[q] += a[q][i] * b[i] for i in `rows`, ascending. Row i is number first_row + i of those that
// fetch the next page.
template <int kQueries, int kVectors, typename Element>
GPTOSS_INLINE void add_rows(const float* a, const Element* b, Range rows,
                            const NextPage<Element>& next, std::int64_t first_row,
                            F32 (&sums)[kQueries][kVectors]) {
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    F32 row[kVectors];
    GPTOSS_UNROLL
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + i * kHeadDim + v * kLanes);
    next.template fetch<kVectors * kLanes>(first_row + i);
    GPTOSS_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const F32 factor = set(a[q * kHeadDim + i]);
      GPTOSS_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[q][v] = fma(factor, row[v], sums[q][v]);
    }
  }
}

// Turns scores into exp(score - new max), 0 where not visible. A NaN score may be dropped from the
// max, but its weight is NaN, and so is everything it meets.
GPTOSS_INLINE void update_softmax(float* scores, Range visible, float& running_max, float& sum,
                                  float& old_minus_new) {
  F32 s[kHeadVectors];
  F32 top = set(kMinusInfinity);
  GPTOSS_UNROLL
  for (int v = 0; v < kHeadVectors; ++v) {
    const std::int64_t lane = v * kLanes;
    s[v] = select(lanes_between(visible.begin - lane, visible.end - lane), load(scores + lane),
                  set(kMinusInfinity));
    top = max(top, s[v]);
  }
  const float page_max = reduce_max(top);
  const float new_max = page_max > running_max ? page_max : running_max;
  const float base = new_max == kMinusInfinity ? 0.0f : new_max;  // -inf - -inf is NaN
  F32 total = zero();
  GPTOSS_UNROLL
  for (int v = 0; v < kHeadVectors; ++v) {
    const F32 weight = exp(s[v] - set(base));
    store(scores + v * kLanes, weight);
    total = total + weight;
  }
  old_minus_new = running_max - base;
  running_max = new_max;
  sum = reduce_add(total);
}

// kQueries heads of one token meet one page, of which they see keys `visible`.
template <int kQueries, typename Element>
void attend_page(const PageView<Element>& page, Range visible, std::int64_t query,
                 AttentionScratch* scratch) {
  constexpr int kVectors = strip_vectors(kQueries);
  constexpr int kStrip = kVectors * kLanes;
  const float* q = scratch->query + query * kHeadDim;
  float* out = scratch->out + query * kHeadDim;
  float* weights = scratch->weights;
  for (int column = 0; column < kHeadDim; column += kStrip) {
    // Scores of a strip out of sight stay what they were: update_softmax drops them.
    if (column >= visible.end || column + kStrip <= visible.begin) continue;
    F32 sums[kQueries][kVectors];
    GPTOSS_UNROLL
    for (auto& row : sums) {
      GPTOSS_UNROLL
      for (F32& sum : row) sum = zero();
    }
    add_rows(q, page.keys + column, {0, kHeadDim}, page.next, column / kStrip * kHeadDim, sums);
    GPTOSS_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      GPTOSS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        store(weights + i * kPageTokens + column + v * kLanes, sums[i][v]);
      }
    }
  }
  float page_sum[kQueries];
  float decay[kLanes] = {};
  static_assert(kQueries <= kLanes);
  GPTOSS_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    update_softmax(weights + i * kPageTokens, visible, scratch->max[query + i], page_sum[i],
                   decay[i]);
  }
  store(decay, exp(load(decay)));
  GPTOSS_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    scratch->sum[query + i] = scratch->sum[query + i] * decay[i] + page_sum[i];
  }
  for (int column = 0; column < kHeadDim; column += kStrip) {
    F32 sums[kQueries][kVectors];
    GPTOSS_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      GPTOSS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] = load(out + i * kHeadDim + column + v * kLanes) * set(decay[i]);
      }
    }
    add_rows(weights, page.values + column, visible, page.next,
             (kHeadDim + column) / kStrip * kHeadDim, sums);
    GPTOSS_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      GPTOSS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        store(out + i * kHeadDim + column + v * kLanes, sums[i][v]);
      }
    }
  }
}

// Calls attend_page for exactly `queries` <= kQueries.
template <int kQueries, typename Element>
GPTOSS_INLINE void attend_group(std::int64_t queries, const PageView<Element>& page, Range visible,
                                std::int64_t query, AttentionScratch* scratch) {
  if (queries >= kQueries) {
    attend_page<kQueries>(page, visible, query, scratch);
  } else if constexpr (kQueries > 1) {
    attend_group<kQueries - 1>(queries, page, visible, query, scratch);
  }
}

// Tokens of the tile that see the page, at keys page_keys.
template <typename Element>
void attend_tokens(const AttentionTile& tile, const PageView<Element>& page, Range page_keys,
                   Range tokens, AttentionScratch* scratch) {
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const Range keys = visible_keys(*tile.args, token, page_keys);
    const Range visible{keys.begin - page_keys.begin, keys.end - page_keys.begin};
    const std::int64_t query = (token - tile.tokens.begin) * tile.heads;
    attend_group<kQueryGroup>(tile.heads, page, visible, query, scratch);
    const PageView<Element> fetched{page.keys, page.values, {}};
    for (std::int64_t head = kQueryGroup; head < tile.heads; head += kQueryGroup) {
      attend_group<kQueryGroup>(tile.heads - head, fetched, visible, query + head, scratch);
    }
  }
}

GPTOSS_INLINE void widen_page(const bf16* from, float* to) {
  for (std::int64_t i = 0; i < kPageElements; i += kLanes) store(to + i, load(from + i));
}

template <typename Element>
GPTOSS_INLINE const Element* page_keys_of(const AttentionTile& tile, std::int64_t page) {
  const AttentionArgs& args = *tile.args;
  return reinterpret_cast<const Element*>(args.pages[page - args.first_page]) +
         tile.kv_head * kPageElements;
}

// The tile's softmax state over the keys of one piece, from scratch.
template <typename Element>
void attend_piece(const AttentionTile& tile, Range piece, AttentionScratch* scratch) {
  const AttentionArgs& args = *tile.args;
  for (std::int64_t query = 0; query < tile.queries(); ++query) {
    scratch->max[query] = kMinusInfinity;
    scratch->sum[query] = 0.0f;
  }
  for (std::int64_t i = 0; i < tile.queries() * kHeadDim; i += kLanes) {
    store(scratch->out + i, zero());
  }
  const std::int64_t begin = visible_keys(args, tile.tokens.begin, piece).begin;
  const std::int64_t end = visible_keys(args, tile.tokens.end - 1, piece).end;
  for (std::int64_t page = begin / kPageTokens; page * kPageTokens < end; ++page) {
    const Range page_keys{page * kPageTokens, (page + 1) * kPageTokens};
    const Element* keys = page_keys_of<Element>(tile, page);
    const Element* values = keys + args.num_kv_heads * kPageElements;
    const bool last = (page + 1) * kPageTokens >= args.position + tile.tokens.end;
    const Element* next = last ? nullptr : page_keys_of<Element>(tile, page + 1);
    Range tokens = tile.tokens;  // those that see some key of the page
    const auto sees = [&](std::int64_t token) {
      const Range visible = visible_keys(args, token, page_keys);
      return visible.begin < visible.end;
    };
    while (tokens.begin < tokens.end && !sees(tokens.begin)) ++tokens.begin;
    while (tokens.begin < tokens.end && !sees(tokens.end - 1)) --tokens.end;
    if constexpr (sizeof(Element) < sizeof(float)) {
      if (tokens.size() * tile.heads > kQueryGroup) {
        widen_page(keys, scratch->keys);
        widen_page(values, scratch->values);
        const PageView<float> wide{scratch->keys, scratch->values, {}};
        attend_tokens(tile, wide, page_keys, tokens, scratch);
        continue;
      }
    }
    const PageView<Element> view{
        keys, values, {next, last ? nullptr : next + args.num_kv_heads * kPageElements}};
    attend_tokens(tile, view, page_keys, tokens, scratch);
  }
}

void attend_piece(const AttentionTile& tile, std::int64_t piece, AttentionScratch* scratch) {
  if (tile.args->dtype == KvDtype::kBf16) {
    attend_piece<bf16>(tile, piece_keys(piece), scratch);
  } else {
    attend_piece<float>(tile, piece_keys(piece), scratch);
  }
}

void load_queries(const AttentionTile& tile, AttentionScratch* scratch) {
  const F32 scale = set(0.125f);  // 1 / sqrt(64), exact
  static_assert(kHeadDim == 64);
  const std::int64_t width = tile.heads * kHeadDim;
  for (std::int64_t token = tile.tokens.begin; token < tile.tokens.end; ++token) {
    const float* q = tile.args->q.row(token) + tile.kv_head * width;
    float* to = scratch->query + (token - tile.tokens.begin) * width;
    for (std::int64_t i = 0; i < width; i += kLanes) store(to + i, load(q + i) * scale);
  }
}

// The merge: an online softmax over the sink and then the pieces, in order.
struct Merge {
  float max;
  float sum;
};

GPTOSS_INLINE Merge begin_merge(float sink, float* out) {
  for (int i = 0; i < kHeadDim; i += kLanes) store(out + i, zero());
  return {sink, sink == kMinusInfinity ? 0.0f : 1.0f};
}
GPTOSS_INLINE void merge_piece(Merge& merge, float* out, float max, float sum,
                               const float* piece_out) {
  const float new_max = max > merge.max ? max : merge.max;
  const float base = new_max == kMinusInfinity ? 0.0f : new_max;
  const float kept = exp(merge.max - base);
  const float added = exp(max - base);
  merge.max = new_max;
  merge.sum = merge.sum * kept + sum * added;
  for (int i = 0; i < kHeadDim; i += kLanes) {
    store(out + i, fma(load(piece_out + i), set(added), load(out + i) * set(kept)));
  }
}
GPTOSS_INLINE void end_merge(const Merge& merge, float* out) {
  for (int i = 0; i < kHeadDim; i += kLanes) store(out + i, load(out + i) / set(merge.sum));
}

GPTOSS_INLINE bool sees_piece(const AttentionArgs& args, std::int64_t token, std::int64_t piece) {
  const Range visible = visible_keys(args, token, piece_keys(piece));
  return visible.begin < visible.end;
}

void merge_tile_piece(const AttentionTile& tile, std::int64_t piece, AttentionScratch* scratch) {
  std::int64_t query = 0;
  for (std::int64_t token = tile.tokens.begin; token < tile.tokens.end; ++token) {
    const bool sees = sees_piece(*tile.args, token, piece);
    for (std::int64_t head = 0; head < tile.heads; ++head, ++query) {
      if (!sees) continue;
      Merge merge{scratch->merged_max[query], scratch->merged_sum[query]};
      merge_piece(merge, tile.out(token, head), scratch->max[query], scratch->sum[query],
                  scratch->out + query * kHeadDim);
      scratch->merged_max[query] = merge.max;
      scratch->merged_sum[query] = merge.sum;
    }
  }
}

template <typename Body>
GPTOSS_INLINE void for_tiles(const AttentionArgs& args, std::int64_t kv_head, Range tokens,
                             const Body& body) {
  const std::int64_t heads = args.num_heads / args.num_kv_heads;
  const std::int64_t size = kTileQueries / heads;
  for (std::int64_t token = tokens.begin; token < tokens.end; token += size) {
    const std::int64_t end = token + size < tokens.end ? token + size : tokens.end;
    body(AttentionTile{&args, kv_head, heads, {token, end}});
  }
}

void attention(const AttentionArgs& args, std::int64_t kv_head, Range tokens, std::byte* memory) {
  AttentionScratch* scratch = reinterpret_cast<AttentionScratch*>(memory);
  for_tiles(args, kv_head, tokens, [&](const AttentionTile& tile) {
    load_queries(tile, scratch);
    for (std::int64_t query = 0; query < tile.queries(); ++query) {
      const std::int64_t head = query % tile.heads;
      const Merge merge = begin_merge(to_float(args.sinks[kv_head * tile.heads + head]),
                                      tile.out(tile.tokens.begin + query / tile.heads, head));
      scratch->merged_max[query] = merge.max;
      scratch->merged_sum[query] = merge.sum;
    }
    const Range everything{0, args.position + tile.tokens.end};
    const std::int64_t oldest = visible_keys(args, tile.tokens.begin, everything).begin;
    for (std::int64_t piece = oldest / kSplitTokens; piece * kSplitTokens < everything.end;
         ++piece) {
      attend_piece(tile, piece, scratch);
      merge_tile_piece(tile, piece, scratch);
    }
    for (std::int64_t query = 0; query < tile.queries(); ++query) {
      end_merge({scratch->merged_max[query], scratch->merged_sum[query]},
                tile.out(tile.tokens.begin + query / tile.heads, query % tile.heads));
    }
  });
}

void attention_split(const AttentionArgs& args, std::int64_t kv_head, Range tokens,
                     std::int64_t split, AttentionPartial* partials, std::byte* memory) {
  AttentionScratch* scratch = reinterpret_cast<AttentionScratch*>(memory);
  for_tiles(args, kv_head, tokens, [&](const AttentionTile& tile) {
    load_queries(tile, scratch);
    attend_piece(tile, split, scratch);
    for (std::int64_t query = 0; query < tile.queries(); ++query, ++partials) {
      partials->max = scratch->max[query];
      partials->sum = scratch->sum[query];
      const float* out = scratch->out + query * kHeadDim;
      for (int i = 0; i < kHeadDim; i += kLanes) store(partials->out + i, load(out + i));
    }
  });
}

void attention_merge(const AttentionArgs& args, std::int64_t kv_head, Range tokens,
                     const AttentionPartial* partials, std::int64_t num_splits,
                     std::int64_t split_stride) {
  for_tiles(args, kv_head, tokens, [&](const AttentionTile& tile) {
    for (std::int64_t token = tile.tokens.begin; token < tile.tokens.end; ++token) {
      for (std::int64_t head = 0; head < tile.heads; ++head, ++partials) {
        float* out = tile.out(token, head);
        Merge merge = begin_merge(to_float(args.sinks[kv_head * tile.heads + head]), out);
        for (std::int64_t piece = 0; piece < num_splits; ++piece) {
          if (!sees_piece(args, token, piece)) continue;
          const AttentionPartial& partial = partials[piece * split_stride];
          merge_piece(merge, out, partial.max, partial.sum, partial.out);
        }
        end_merge(merge, out);
      }
    }
  });
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
