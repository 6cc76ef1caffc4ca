// quantize_bf16: float32 [rows][cols] to blocks of 32 bf16 values on a grid, their codes' bytes, a
// scale and a sum (kernel_table.h), the activations of AMX. Moves 10.25 bytes a value. Next to the
// rounding to eight bits the grid adds nothing: 2^-12 of the largest value of the block.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/simd/amx_bytes.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

void quantize_bf16(const QuantizeBf16Args& args, Range rows, Range blocks) {
  const Bf16Activations& out = args.out;
  const std::int64_t num_blocks = out.cols / kMxBlock;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = args.x.row(row);
    std::int8_t* bytes = out.bytes + row * 2 * out.cols;
    for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
      const Bf16Block block = quantize_bf16_block(x + b * kMxBlock);
      _mm512_storeu_si512(out.values + row * out.cols + b * kMxBlock, block.values);
      GPTOSS_UNROLL
      for (int i = 0; i < 4; ++i) {
        std::int8_t* to = bytes + i * (out.cols / 2) + b * (kMxBlock / 2);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), block.bytes[i]);
      }
      auto* codes = reinterpret_cast<__m256i*>(out.codes + row * out.cols + b * kMxBlock);
      _mm256_storeu_si256(codes, block.high);
      _mm256_storeu_si256(codes + 1, block.low);
      out.scales[row * num_blocks + b] = block.scale;
      out.sums[row * num_blocks + b] = block.sum;
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
