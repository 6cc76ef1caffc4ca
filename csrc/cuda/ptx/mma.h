// Warp-level tensor-core products, compute capability 8.0 and later. Fragments: layout.h and the
// PTX ISA, mma.m16n8k16. Lane l, g = l / 4, q = l % 4:
//   b[0] = (k 2q, 2q + 1; column g)      b[1] = (k 2q + 8, 2q + 9; column g)
//   d[0], d[1] = (row g; columns 2q, 2q + 1)      d[2], d[3] = (row g + 8; the same columns)
#pragma once

#include <cstdint>

namespace gptoss::cuda::ptx {

// d += a * b: 16 x 16 times 16 x 8, bf16 operands, float32 accumulation.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace gptoss::cuda::ptx
