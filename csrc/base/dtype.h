// Number formats of a gpt-oss checkpoint: bfloat16, and the e8m0 scale byte of MXFP4.
#pragma once

#include <bit>
#include <cstdint>

namespace gptoss {

// Alignment 1: safetensors promises none, so tensors are read at any address.
struct [[gnu::packed]] bf16 {
  std::uint16_t bits;
};
static_assert(sizeof(bf16) == 2 && alignof(bf16) == 1);

[[gnu::always_inline]] inline float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// Round to nearest even; NaN stays NaN (quietened), infinity stays infinity.
[[gnu::always_inline]] inline bf16 to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return bf16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  }
  return bf16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// OCP microscaling 1.0, e8m0: 2^(byte - 127); byte 0 is the subnormal 2^-127, byte 255 is NaN.
[[gnu::always_inline]] inline float e8m0_to_float(std::uint8_t byte) {
  if (byte == 0) return std::bit_cast<float>(0x00400000u);
  if (byte == 255) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(static_cast<std::uint32_t>(byte) << 23);
}

}  // namespace gptoss
