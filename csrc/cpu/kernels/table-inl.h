// The table of one instruction set, over everything that its isa_*.cc has included before.
#pragma once

#include "cpu/kernel_table.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

std::size_t scratch_bytes(std::int64_t cols) {
  std::size_t bytes = int8_scratch_bytes(cols);
  if (bytes < sizeof(LinearBf16Scratch)) bytes = sizeof(LinearBf16Scratch);
  if (bytes < sizeof(AttentionScratch)) bytes = sizeof(AttentionScratch);
  return (bytes + 63) / 64 * 64;
}

constexpr KernelTable make_table(Isa isa) {
  return {.isa = isa,
          .row_tile = kRowTile,
          .dense_unit_rows = 64,
          .expert_unit_rows = 256,
          .dense_unit_tokens = 512,
          .max_batch_tokens = 512,
          .expert_forms = {.int8 = true},
          .int8_forms = {.int15 = true},
          .scratch_bytes = scratch_bytes,
          .embed = embed,
          .rms_norm = rms_norm,
          .linear_bf16 = linear_bf16,
          .linear_bf16_float32 = linear_bf16,
          .quantize_int8 = quantize_int8,
          .quantize_int15 = quantize_int15,
          .quantize_bf16 = nullptr,
          .int15_code = int15_code,
          .packed_int8_bytes = packed_int8_bytes,
          .pack_int8 = pack_int8,
          .linear_int8 = linear_int8,
          .linear_mxfp4_int8 = linear_mxfp4_int8,
          .linear_mxfp4_float32 = linear_mxfp4_float32,
          .swiglu = swiglu,
          .rope = rope,
          .kv_write = kv_write,
          .attention = attention,
          .attention_split = attention_split,
          .attention_merge = attention_merge,
          .router_topk = router_topk,
          .moe_combine = moe_combine};
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
