// linear_bf16: x float32 [num_tokens][cols] times weight bf16 [rows][cols] transposed, plus bias
// [rows], stored to or added to out float32 [num_tokens][rows]. Moves 2 * rows * cols bytes of
// weights a block of tokens; 2 * num_tokens * rows * cols operations.
//
// Lanes run along the columns: lane l of an output's sum takes columns l, l + kLanes, ... in order,
// and reduce_add joins the lanes. That is every output's order, whatever is computed beside it. Few
// tokens read the weights in place; many share rows widened to float32 in chunks that fit L1.
#pragma once

#include "backend/op_args.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Tokens and rows of one micro-kernel over widened weights: their product fills the registers.
constexpr int kTokenTile = kAccumulators >= 24 ? 4 : kAccumulators >= 12 ? 3 : 2;
constexpr int kPanelRows = kAccumulators / kTokenTile;
constexpr std::int64_t kPanelCols = 512;
// Tokens that share widened weights. Their activations (64 * 2880 * 4 bytes) stay in L2.
constexpr std::int64_t kTokenBlock = 64;
static_assert(kPanelCols % kLanes == 0);

struct LinearBf16Scratch {
  float panel[kPanelRows * kPanelCols];           // [kPanelRows][kPanelCols]
  float sums[kTokenBlock * kPanelRows * kLanes];  // by token tile: [kPanelRows][tokens][kLanes]
};

// Tokens with whom the weights are read in place.
constexpr int kDirectTokens = kAccumulators >= 24 ? 8 : kAccumulators >= 12 ? 6 : 2;
// Rows at a time then: enough independent sums to hide the latency of fma, with registers left for
// every token's values.
constexpr int direct_rows(int tokens) {
  constexpr int kRegisters = kAccumulators >= 24 ? 32 : 16;
  const int sums = kAccumulators / tokens;
  const int fitting = (kRegisters - 1) / tokens - 1;
  const int rows = sums < fitting ? sums : fitting;
  return rows < 8 ? rows : 8;
}
// Each of them walks its own part of the rows, a long stream of memory fetched so far ahead.
// (linear_mxfp4-inl.h says why.)
constexpr std::int64_t kDirectAheadBytes = 512;

// What the next tile of tokens will read, fetched into L1 meanwhile: 2880 columns of 64 tokens at
// 155 instead of 140 GFLOP/s (one core of a 3.8 GHz Xeon, peak 240).
struct Ahead {
  std::int64_t x = 0;           // elements from this tile's x to the next one's
  const float* sums = nullptr;  // null: nothing to fetch
};

template <int kRows, int kTokens, typename Weight>
GPTOSS_INLINE void add_products(const Weight* const (&weight)[kRows],
                                const float* const (&x)[kTokens], std::int64_t cols,
                                const Ahead& ahead, F32 (&sums)[kRows][kTokens]) {
  const auto add = [&](const auto& load_lanes, std::int64_t i) {
    F32 v[kTokens];
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) v[t] = load_lanes(x[t] + i);
    GPTOSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F32 w = load_lanes(weight[r] + i);
      GPTOSS_UNROLL
      for (int t = 0; t < kTokens; ++t) sums[r][t] = fma(w, v[t], sums[r][t]);
    }
  };
  std::int64_t i = 0;
  if constexpr (sizeof(Weight) == sizeof(bf16)) {  // a cache line of every row
    constexpr std::int64_t kLine = 64 / sizeof(bf16);
    for (; i + kLine <= cols; i += kLine) {
      GPTOSS_UNROLL
      for (int r = 0; r < kRows; ++r) prefetch(weight[r] + i + kDirectAheadBytes / 2);
      GPTOSS_UNROLL
      for (std::int64_t j = 0; j < kLine; j += kLanes) {
        add([](const auto* p) { return load(p); }, i + j);
      }
    }
  }
  for (; i + kLanes <= cols; i += kLanes) {
    add([](const auto* p) { return load(p); }, i);
    if constexpr (sizeof(Weight) == sizeof(float)) {
      GPTOSS_UNROLL
      for (int t = 0; t < kTokens; ++t) prefetch(x[t] + i + ahead.x);
      prefetch(ahead.sums + i);
    }
  }
  if (i < cols) add([&](const auto* p) { return load_partial(p, cols - i); }, i);
}

// Rows first, first + step, ...; those from the count-th on were computed from a repeated row and
// are dropped.
struct OutputRows {
  std::int64_t first;
  std::int64_t step;
  std::int64_t count;
};

template <int kRows, int kTokens>
GPTOSS_INLINE void store_outputs(const LinearBf16Args& args, std::int64_t token,
                                 const OutputRows& rows, const F32 (&sums)[kRows][kTokens]) {
  constexpr int kProducts = kRows * kTokens;
  float products[kProducts];
  const auto sum = [&](int i) -> F32 { return sums[i / kTokens][i % kTokens]; };
  GPTOSS_UNROLL
  for (int i = 0; i < kProducts / 4; ++i) {
    reduce_add4(sum(4 * i), sum(4 * i + 1), sum(4 * i + 2), sum(4 * i + 3), products + 4 * i);
  }
  GPTOSS_UNROLL
  for (int i = kProducts / 4 * 4; i < kProducts; ++i) products[i] = reduce_add(sum(i));
  const int count = rows.count < kRows ? static_cast<int>(rows.count) : kRows;
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    float* out = args.out.row(token + t);
    std::int64_t row = rows.first;
    for (int r = 0; r < count; ++r, row += rows.step) {
      float value = products[r * kTokens + t];
      if (args.bias != nullptr) value += to_float(args.bias[row]);
      out[row] = args.epilogue == Epilogue::kAdd ? out[row] + value : value;
    }
  }
}

// Some rows for all tokens of x, with the weights read in place.
template <int kRows, int kTokens>
void add_direct(const LinearBf16Args& args, const OutputRows& rows) {
  const float* x[kTokens];
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) x[t] = args.x.row(t);
  const bf16* weight[kRows];
  F32 sums[kRows][kTokens];
  GPTOSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t i = r < rows.count ? r : rows.count - 1;
    weight[r] = args.weight.row(rows.first + i * rows.step);
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) sums[r][t] = zero();
  }
  add_products(weight, x, args.weight.cols, {}, sums);
  store_outputs(args, 0, rows, sums);
}

template <int kTokens>
void linear_bf16_direct(const LinearBf16Args& args, Range rows) {
  constexpr int kRows = direct_rows(kTokens);
  const std::int64_t step = rows.size() / kRows;
  for (std::int64_t i = 0; i < step; ++i) {
    add_direct<kRows, kTokens>(args, {rows.begin + i, step, kRows});
  }
  const std::int64_t rest = rows.begin + step * kRows;
  if (rest < rows.end) add_direct<kRows, kTokens>(args, {rest, 1, rows.end - rest});
}

template <int kTokens>
GPTOSS_INLINE void linear_bf16_few(const LinearBf16Args& args, Range rows) {
  if (args.x.rows == kTokens) {
    linear_bf16_direct<kTokens>(args, rows);
  } else if constexpr (kTokens > 1) {
    linear_bf16_few<kTokens - 1>(args, rows);
  }
}

// One chunk of columns of a panel of rows, and the tokens of a block.
struct PanelChunk {
  const float* panel;  // [kPanelRows][kPanelCols]
  std::int64_t row;
  std::int64_t row_end;
  std::int64_t col;
  std::int64_t cols;  // of this chunk
};

template <int kTokens>
void add_panel_chunk(const LinearBf16Args& args, const PanelChunk& chunk, std::int64_t token,
                     float* stored) {
  const float* x[kTokens];
  const float* weight[kPanelRows];
  F32 sums[kPanelRows][kTokens];
  GPTOSS_UNROLL
  for (int t = 0; t < kTokens; ++t) x[t] = args.x.row(token + t) + chunk.col;
  GPTOSS_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    weight[r] = chunk.panel + r * kPanelCols;
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      sums[r][t] = chunk.col == 0 ? zero() : load(stored + (r * kTokens + t) * kLanes);
    }
  }
  const Ahead ahead{kTokens * args.x.stride, stored + kPanelRows * kTokens * kLanes};
  add_products(weight, x, chunk.cols, ahead, sums);
  if (chunk.col + chunk.cols == args.weight.cols) {
    store_outputs(args, token, {chunk.row, 1, chunk.row_end - chunk.row}, sums);
    return;
  }
  GPTOSS_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    GPTOSS_UNROLL
    for (int t = 0; t < kTokens; ++t) store(stored + (r * kTokens + t) * kLanes, sums[r][t]);
  }
}

// The next tokens of the block, kTokenTile of them or what is left.
template <int kTokens>
GPTOSS_INLINE void add_tokens(const LinearBf16Args& args, const PanelChunk& chunk,
                              std::int64_t token, std::int64_t left, float* stored) {
  if (left >= kTokens) {
    add_panel_chunk<kTokens>(args, chunk, token, stored);
  } else if constexpr (kTokens > 1) {
    add_tokens<kTokens - 1>(args, chunk, token, left, stored);
  }
}

GPTOSS_INLINE void widen_panel(const LinearBf16Args& args, const PanelChunk& chunk, float* panel) {
  GPTOSS_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    const std::int64_t row = chunk.row + r < chunk.row_end ? chunk.row + r : chunk.row_end - 1;
    const bf16* weight = args.weight.row(row) + chunk.col;
    float* to = panel + r * kPanelCols;
    std::int64_t i = 0;
    for (; i + kLanes <= chunk.cols; i += kLanes) store(to + i, load(weight + i));
    if (i < chunk.cols) store(to + i, load_partial(weight + i, chunk.cols - i));
  }
}

void linear_bf16_block(const LinearBf16Args& args, Range rows, Range tokens,
                       LinearBf16Scratch* scratch) {
  const std::int64_t cols = args.weight.cols;
  for (std::int64_t row = rows.begin; row < rows.end; row += kPanelRows) {
    for (std::int64_t col = 0; col < cols; col += kPanelCols) {
      const PanelChunk chunk{scratch->panel, row, rows.end, col,
                             cols - col < kPanelCols ? cols - col : kPanelCols};
      widen_panel(args, chunk, scratch->panel);
      float* stored = scratch->sums;
      for (std::int64_t token = tokens.begin; token < tokens.end; token += kTokenTile) {
        add_tokens<kTokenTile>(args, chunk, token, tokens.end - token, stored);
        stored += kPanelRows * kTokenTile * kLanes;
      }
    }
  }
}

void linear_bf16(const LinearBf16Args& args, Range rows, std::byte* scratch) {
  const std::int64_t num_tokens = args.x.rows;
  if (num_tokens <= kDirectTokens) return linear_bf16_few<kDirectTokens>(args, rows);
  for (std::int64_t token = 0; token < num_tokens; token += kTokenBlock) {
    const Range block{token, num_tokens - token < kTokenBlock ? num_tokens : token + kTokenBlock};
    linear_bf16_block(args, rows, block, reinterpret_cast<LinearBf16Scratch*>(scratch));
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
