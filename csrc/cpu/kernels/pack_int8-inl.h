// pack_int8: dense bf16 weights [rows][cols] to int8 blocks of 32 with a bf16 scale, 8.5 bits a
// weight, in tiles of kRowTile rows: [tile][block]{scales bf16 [kRowTile], codes
// [32 / kInt8Group][kRowTile][kInt8Group]}, kInt8Offset added to every code.
//
// scale = amax / 127 rounded up to bf16, q = w / scale rounded to nearest even, which is within
// +-127; blocks that are not finite have scale NaN. Rows that pad the last tile have scale 0.
#pragma once

#include "cpu/kernel_table.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kPackedScaleBytes = kRowTile * static_cast<std::int64_t>(sizeof(bf16));
constexpr std::int64_t kPackedBlockBytes = kPackedScaleBytes + kRowTile * kMxBlock;

std::size_t packed_int8_bytes(std::int64_t rows, std::int64_t cols) {
  const std::int64_t tiles = (rows + kRowTile - 1) / kRowTile;
  return static_cast<std::size_t>(tiles * (cols / kMxBlock) * kPackedBlockBytes);
}

// The smallest bf16 not below a non-negative finite value.
GPTOSS_INLINE bf16 round_up_to_bf16(float value) {
  return bf16{static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) + 0xffffu) >> 16)};
}

// 32 weights of a row to codes, in groups kRowTile groups apart, and the scale.
GPTOSS_INLINE bf16 pack_row_block(const bf16* w, std::uint8_t* codes) {
  const FloatBlock block = load_float_block(w);
  const std::uint32_t bits = max_magnitude_bits(block);
  const bool finite = bits < 0x7f800000u;
  const bf16 scale = finite ? round_up_to_bf16(std::bit_cast<float>(bits) / 127.0f) : bf16{0x7fc0};
  alignas(32) std::int8_t q[kMxBlock] = {};
  if (to_float(scale) > 0.0f) quantize_block(block, to_float(scale), q);
  alignas(32) std::uint8_t bytes[kMxBlock];
  for (std::int64_t i = 0; i < kMxBlock; ++i) {  // q is in kernel order
    bytes[i] = static_cast<std::uint8_t>(q[(i & ~7) + (i & 1) * 4 + (i & 7) / 2] + kInt8Offset);
  }
  for (std::int64_t i = 0; i < kMxBlock; i += kInt8Group) {
    __builtin_memcpy(codes + i * kRowTile, bytes + i, kInt8Group);
  }
  return scale;
}

void pack_int8(const MatrixView<const bf16>& weight, Range rows, std::uint8_t* out) {
  const std::int64_t num_blocks = weight.cols / kMxBlock;
  for (std::int64_t first = rows.begin / kRowTile * kRowTile; first < rows.end; first += kRowTile) {
    std::uint8_t* packed = out + first * num_blocks * (kPackedBlockBytes / kRowTile);
    for (std::int64_t b = 0; b < num_blocks; ++b, packed += kPackedBlockBytes) {
      if (first + kRowTile > weight.rows) __builtin_memset(packed, 0, kPackedBlockBytes);
      for (std::int64_t r = 0; r < kRowTile && first + r < weight.rows; ++r) {
        const bf16 scale = pack_row_block(weight.row(first + r) + b * kMxBlock,
                                          packed + kPackedScaleBytes + r * kInt8Group);
        __builtin_memcpy(packed + r * static_cast<std::int64_t>(sizeof(bf16)), &scale,
                         sizeof scale);
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
