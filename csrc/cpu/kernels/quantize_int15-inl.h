// quantize_int15: float32 [rows][cols] to blocks of 32 codes of 15 bits with one float32 scale and
// the sum of the codes, the activations of dense int8 products. Moves 6.25 bytes a value.
//
// scale = amax / 16256, code = x / scale rounded to nearest even, within +-16256. A block of zeros
// (or whose scale underflows) has scale 0 and codes 0; one with a NaN or an infinity has scale NaN
// and codes 0, so that every product with it is NaN. The same values on every ISA.
#pragma once

#include "cpu/kernel_table.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

void quantize_int15(const QuantizeInt15Args& args, Range rows, Range blocks) {
  const std::int64_t num_blocks = args.out.cols / kMxBlock;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = args.x.row(row);
    std::int16_t* codes = args.out.codes + row * args.out.cols;
    for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
      const FloatBlock block = load_float_block(x + b * kMxBlock);
      const std::uint32_t bits = max_magnitude_bits(block);
      const bool finite = bits < 0x7f800000u;
      const float scale = finite ? std::bit_cast<float>(bits) / kInt15Max : __builtin_nanf("");
      std::int32_t sum = 0;
      if (scale > 0.0f) {
        sum = quantize_int15_block(block, scale, codes + b * kMxBlock);
      } else {
        __builtin_memset(codes + b * kMxBlock, 0, kMxBlock * sizeof(std::int16_t));
      }
      args.out.scales[row * num_blocks + b] = scale;
      args.out.sums[row * num_blocks + b] = sum;
    }
  }
}

std::int16_t int15_code(const std::int16_t* block, std::int64_t index) {
  return int15_code_at(block, index);
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
