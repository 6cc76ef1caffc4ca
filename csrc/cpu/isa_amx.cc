// The kernels compiled for AVX-512 with AMX: the lanes of simd/, every op over them, and in their
// stead the products and attention on tiles.
//
// Everything is in an anonymous namespace but the table: this file must define no symbol that the
// linker could take for code compiled for any processor (checked by a test).
#define GPTOSS_ISA amx

// clang-format off: lanes, ops over them, the table of the ops.
#include "cpu/simd/avx512.h"
#include "cpu/simd/int8_avx512.h"

#include "cpu/kernels/attention-inl.h"
#include "cpu/kernels/embed-inl.h"
#include "cpu/kernels/kv_write-inl.h"
#include "cpu/kernels/linear_bf16-inl.h"
#include "cpu/kernels/linear_int8-inl.h"
#include "cpu/kernels/linear_mxfp4-inl.h"
#include "cpu/kernels/moe_combine-inl.h"
#include "cpu/kernels/pack_int8-inl.h"
#include "cpu/kernels/quantize_int15-inl.h"
#include "cpu/kernels/quantize_int8-inl.h"
#include "cpu/kernels/rms_norm-inl.h"
#include "cpu/kernels/rope-inl.h"
#include "cpu/kernels/router_topk-inl.h"
#include "cpu/kernels/swiglu-inl.h"

#include "cpu/kernels/table-inl.h"

#include "cpu/kernels/linear_bf16_amx-inl.h"
#include "cpu/kernels/linear_int8_amx-inl.h"
#include "cpu/kernels/linear_mxfp4_amx-inl.h"
#include "cpu/kernels/quantize_bf16-inl.h"
// clang-format on

namespace gptoss::cpu {
namespace amx {
namespace {

std::size_t scratch_bytes_amx(std::int64_t cols) {
  const std::size_t tiles = amx_scratch_bytes(cols);
  const std::size_t lanes = scratch_bytes(cols);
  return tiles > lanes ? tiles : lanes;
}

constexpr KernelTable make_amx_table() {
  KernelTable table = make_table(Isa::kAmx);
  static_assert(kTileRows == kRowTile);
  table.dense_unit_rows = 1024;
  table.expert_unit_rows = 2880;
  table.dense_unit_tokens = kAmxTokens;
  table.max_batch_tokens = 1024;
  table.expert_forms = {.bf16 = true};
  table.int8_forms = {.bf16 = true};
  table.scratch_bytes = scratch_bytes_amx;
  table.linear_bf16 = linear_bf16_amx;
  table.quantize_bf16 = quantize_bf16;
  table.linear_int8 = linear_int8_amx;
  table.linear_mxfp4_int8 = linear_mxfp4_amx;
  return table;
}

}  // namespace
}  // namespace amx

const KernelTable& amx_kernels() {
  static constexpr KernelTable table = amx::make_amx_table();
  return table;
}

}  // namespace gptoss::cpu
