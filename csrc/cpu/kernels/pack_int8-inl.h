// pack_int8: dense bf16 weights [rows][cols] to int8 blocks of 32 with a bf16 scale, 8.5 bits a
// weight, in tiles of kRowTile rows: [tile][block]{scales bf16 [kRowTile], codes [8][kRowTile][4]}.
// Plane i holds bytes 4 * i to 4 * i + 3 of each row's block in kernel order, plus kInt8Offset.
//
// scale = amax / 127 rounded up to bf16, q = w / scale rounded to nearest even; blocks that are not
// finite have scale NaN. Rows that pad the last tile have scale 0 and codes 0.
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

GPTOSS_INLINE bf16 pack_row_block(const bf16* w, std::int8_t* q) {
  const FloatBlock block = load_float_block(w);
  const std::uint32_t bits = max_magnitude_bits(block);
  const bool finite = bits < 0x7f800000u;
  const bf16 scale = finite ? round_up_to_bf16(std::bit_cast<float>(bits) / 127.0f) : bf16{0x7fc0};
  if (to_float(scale) > 0.0f) {
    quantize_block(block, to_float(scale), q);
  } else {
    __builtin_memset(q, 0, kMxBlock);
  }
  return scale;
}

void pack_int8(const MatrixView<const bf16>& weight, Range rows, std::uint8_t* out) {
  const std::int64_t num_blocks = weight.cols / kMxBlock;
  for (std::int64_t first = rows.begin / kRowTile * kRowTile; first < rows.end; first += kRowTile) {
    std::uint8_t* packed = out + first * num_blocks * (kPackedBlockBytes / kRowTile);
    for (std::int64_t b = 0; b < num_blocks; ++b, packed += kPackedBlockBytes) {
      for (std::int64_t r = 0; r < kRowTile; ++r) {
        alignas(32) std::int8_t q[kMxBlock] = {};
        bf16 scale{0};
        if (first + r < weight.rows) {
          scale = pack_row_block(weight.row(first + r) + b * kMxBlock, q);
        }
        __builtin_memcpy(packed + r * static_cast<std::int64_t>(sizeof(bf16)), &scale,
                         sizeof scale);
        for (std::int64_t i = 0; i < kMxBlock; ++i) {
          q[i] = static_cast<std::int8_t>(static_cast<std::uint8_t>(q[i] + kInt8Offset));
        }
        std::uint8_t* codes = packed + kPackedScaleBytes + r * 4;
        for (std::int64_t i = 0; i < kMxBlock; i += 4) {
          __builtin_memcpy(codes + i * kRowTile, q + i, 4);
        }
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
