// Bitwise choice in one instruction (PTX ISA, lop3), which compilers make two of.
#pragma once

#include <cstdint>

namespace gptoss::cuda::ptx {

// Bits of `ones` where the mask has ones, of `zeros` elsewhere.
__device__ __forceinline__ std::uint32_t select_bits(std::uint32_t mask, std::uint32_t ones,
                                                     std::uint32_t zeros) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(result) : "r"(mask), "r"(ones), "r"(zeros));
  return result;
}

}  // namespace gptoss::cuda::ptx
