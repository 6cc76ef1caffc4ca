// quantize_int8: float32 [rows][cols] to blocks of 32 int8 with one float32 scale and the sum of
// the codes, the activations of expert products; bytes in kernel order (groups of eight as 0 2 4 6
// 1 3 5 7). Moves 5.25 bytes a value.
//
// scale = amax / 127, q = x / scale rounded to nearest even, within +-127 and never -128. A block
// of zeros (or whose scale underflows) has scale 0 and codes 0; one with a NaN or an infinity has
// scale NaN and codes 0, so that every product with it is NaN. The same bits on every ISA.
#pragma once

#include "cpu/kernel_table.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

void quantize_int8(const QuantizeInt8Args& args, Range rows, Range blocks) {
  const std::int64_t num_blocks = args.out.cols / kMxBlock;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = args.x.row(row);
    std::int8_t* q = args.out.q + row * args.out.cols;
    for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
      const FloatBlock block = load_float_block(x + b * kMxBlock);
      const std::uint32_t bits = max_magnitude_bits(block);
      const bool finite = bits < 0x7f800000u;
      const float scale = finite ? std::bit_cast<float>(bits) / 127.0f : __builtin_nanf("");
      std::int32_t sum = 0;
      if (scale > 0.0f) {
        sum = quantize_block(block, scale, q + b * kMxBlock);
      } else {
        __builtin_memset(q + b * kMxBlock, 0, kMxBlock);
      }
      args.out.scales[row * num_blocks + b] = scale;
      args.out.sums[row * num_blocks + b] = sum;
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
