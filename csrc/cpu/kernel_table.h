// The CPU kernels of one instruction set. Each computes one thread's share of an op: the layer loop
// decides the sharing. Kernels never throw and never allocate.
//
// Bit-equality: within one instruction set an output's value does not depend on how many tokens or
// rows are computed together, nor on the share boundaries.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/op_args.h"
#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/view.h"
#include "model/kv_plan.h"
#include "model/mxfp4.h"

namespace gptoss::cpu {

// The largest code of 15 bits, 127 * 128: codes are 128 * high + low with two signed bytes, which
// is how some ISAs multiply them.
constexpr int kInt15Max = 16256;

// Activations of expert products, in blocks of 32 along the input dimension: value = q * scale.
// Inside a block the bytes are in kernel order, that of the nibbles of MXFP4: every group of eight
// holds elements 0 2 4 6 1 3 5 7.
struct Int8Activations {
  std::int8_t* q = nullptr;      // [rows][cols]
  float* scales = nullptr;       // [rows][cols / 32]; NaN where the block was not finite
  std::int32_t* sums = nullptr;  // [rows][cols / 32], sum of q over the block
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

// Activations of dense int8 products, likewise, with codes of 15 bits: to the rounding of the
// weights they add next to nothing. Each ISA lays out the codes inside a block its own way.
struct Int15Activations {
  std::int16_t* codes = nullptr;  // [rows][cols]
  float* scales = nullptr;        // [rows][cols / 32]; NaN where the block was not finite
  std::int32_t* sums = nullptr;   // [rows][cols / 32], sum of the codes of the block
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

// Activations on AMX: values of at most eight significant bits, which bf16 holds, that within a
// block of 32 are multiples of its scale, a power of two: value = code * scale, code within +-4096.
// Sums of a block's products with integers are then exact in float32, in any order, and the tiles
// agree with integer products of the codes' two signed bytes, code = 128 * high + low.
struct Bf16Activations {
  bf16* values = nullptr;         // [rows][cols]; NaN in blocks that are not finite
  std::int8_t* bytes = nullptr;   // [rows][high, low][even, odd columns][cols / 2]
  float* scales = nullptr;        // [rows][cols / 32]; 0 for zeros, NaN where not finite
  std::int32_t* sums = nullptr;   // [rows][cols / 32], sum of the codes of the block
  std::int16_t* codes = nullptr;  // [rows][cols], as in Int15Activations
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

// The forms besides float32 that products want activations in.
struct ActivationForms {
  bool int8 = false;
  bool int15 = false;
  bool bf16 = false;
};

struct QuantizeInt8Args {
  MatrixView<const float> x;  // [rows][cols], cols a multiple of 32
  Int8Activations out;
};

struct QuantizeInt15Args {
  MatrixView<const float> x;  // [rows][cols], cols a multiple of 32
  Int15Activations out;
};

struct QuantizeBf16Args {
  MatrixView<const float> x;  // [rows][cols], cols a multiple of 32
  Bf16Activations out;
};

// Dense weights repacked at load to 8.5 bits: tiles of `row_tile` rows; a tile is its blocks one
// after another; a block is its scales, then its codes as the kernels of the ISA want them.
struct PackedInt8 {
  const std::uint8_t* data;
  std::int64_t rows;
  std::int64_t cols;
};

struct LinearInt8Args {
  Int15Activations x;      // [num_tokens][cols]
  Bf16Activations x_bf16;  // where the ISA wants them in this form
  PackedInt8 weight;
  const bf16* bias;  // [rows] or null
  Epilogue epilogue;
  MatrixView<float> out;  // [num_tokens][rows]
};

// One expert's matrix times some rows of the activations, gathered and scattered by index.
struct LinearMxfp4Args {
  Int8Activations x;                // int8 products; x.q null for others
  Bf16Activations x_bf16;           // int8 products, where the ISA wants them in this form
  MatrixView<const float> x_float;  // float32 products
  MxMatrix weight;                  // rows a multiple of 32
  const bf16* bias;                 // [weight.rows]
  const std::int32_t* x_rows;       // [num_rows], rows of x
  const std::int32_t* out_rows;     // [num_rows], rows of out
  std::int64_t num_rows;
  MatrixView<float> out;  // [...][weight.rows]
};

// Writes one layer's keys and values of consecutive positions to their pages.
struct KvWriteArgs {
  MatrixView<const float> k;  // [num_tokens][num_kv_heads * 64], rotated
  MatrixView<const float> v;  // [num_tokens][num_kv_heads * 64]
  std::int64_t position;      // of token 0
  std::byte* const* pages;    // page number - first_page -> start of this layer in the page
  std::int64_t first_page;
  std::int64_t num_kv_heads;
  KvDtype dtype;
};

// Scores q.k / 8; a learned sink joins the softmax's denominator. Query at position i sees key j
// iff 0 <= i - j, and i - j < window where window > 0.
struct AttentionArgs {
  MatrixView<const float> q;      // [num_tokens][num_heads * 64], rotated
  std::int64_t position;          // of token 0
  const std::byte* const* pages;  // as in KvWriteArgs
  std::int64_t first_page;
  std::int64_t window;  // 0: full causal
  const bf16* sinks;    // [num_heads]
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  KvDtype dtype;
  MatrixView<float> out;  // [num_tokens][num_heads * 64]
};

// What one piece of kSplitTokens keys contributes to one query head.
struct AttentionPartial {
  float max;  // -inf when the piece shows no key
  float sum;  // of exp(score - max)
  float out[kHeadDim];
};

struct KernelTable {
  Isa isa;
  // Rows of one packed int8 tile; ranges of rows given to linear_int8 and linear_mxfp4 begin at
  // multiples of it.
  std::int64_t row_tile;
  // Rows a thread takes at a time, at most, where tokens are many: of a dense matrix, of an
  // expert's. More share the packing of the tokens.
  std::int64_t dense_unit_rows;
  std::int64_t expert_unit_rows;
  // Tokens a thread takes at a time of a dense product, at most: as many as are packed at a time.
  std::int64_t dense_unit_tokens;
  // Most tokens of a step: more share the expansion of experts' weights.
  std::int64_t max_batch_tokens;
  // What linear_mxfp4_int8 and linear_int8 read.
  ActivationForms expert_forms;
  ActivationForms int8_forms;
  // Bytes of private scratch a thread hands to kernels that take one, for products over `cols`.
  std::size_t (*scratch_bytes)(std::int64_t cols);

  void (*embed)(const EmbedArgs&, Range tokens);
  void (*rms_norm)(const RmsNormArgs&, Range tokens);
  // With activations as the ISA likes them, float32 or bf16; and with float32 ones.
  void (*linear_bf16)(const LinearBf16Args&, Range rows, std::byte* scratch);
  void (*linear_bf16_float32)(const LinearBf16Args&, Range rows, std::byte* scratch);
  void (*quantize_int8)(const QuantizeInt8Args&, Range rows, Range blocks);
  void (*quantize_int15)(const QuantizeInt15Args&, Range rows, Range blocks);
  // Null where no product of the ISA wants the form.
  void (*quantize_bf16)(const QuantizeBf16Args&, Range rows, Range blocks);
  // Code `index` of the 32 of a block of Int15Activations.
  std::int16_t (*int15_code)(const std::int16_t* block, std::int64_t index);
  std::size_t (*packed_int8_bytes)(std::int64_t rows, std::int64_t cols);
  // Quantises and packs the tiles that cover `rows` of a bf16 matrix.
  void (*pack_int8)(const MatrixView<const bf16>& weight, Range rows, std::uint8_t* out);
  void (*linear_int8)(const LinearInt8Args&, Range rows, std::byte* scratch);
  void (*linear_mxfp4_int8)(const LinearMxfp4Args&, Range rows, std::byte* scratch);
  void (*linear_mxfp4_float32)(const LinearMxfp4Args&, Range rows, std::byte* scratch);
  void (*swiglu)(const SwigluArgs&, Range rows, Range cols);
  void (*rope)(const RopeArgs&, Range tokens);
  void (*kv_write)(const KvWriteArgs&, Range tokens);
  // All query heads of one kv head, for some tokens: whole, or one piece of keys and the merge of
  // all pieces. partials: [tokens.size()][heads per kv head] for one piece; the merge takes
  // num_splits of them, `split_stride` partials apart, for pieces 0 .. num_splits - 1. The three
  // give the same bits.
  void (*attention)(const AttentionArgs&, std::int64_t kv_head, Range tokens, std::byte* scratch);
  void (*attention_split)(const AttentionArgs&, std::int64_t kv_head, Range tokens,
                          std::int64_t split, AttentionPartial* partials, std::byte* scratch);
  void (*attention_merge)(const AttentionArgs&, std::int64_t kv_head, Range tokens,
                          const AttentionPartial* partials, std::int64_t num_splits,
                          std::int64_t split_stride);
  void (*router_topk)(const RouterTopkArgs&, Range tokens);
  void (*moe_combine)(const MoeCombineArgs&, Range tokens, Range cols);
};

const KernelTable& scalar_kernels();
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& amx_kernels();
// Throws DeviceError for an ISA that this build or machine lacks.
const KernelTable& kernels_for(Isa isa);

}  // namespace gptoss::cpu
