// Warpgroup products (sm_90a): D[64][N] += A[64][16] * B[16][N], bf16 in, float32 out; A from
// registers (each warp's 16 rows as the fragment of layout.h), B from shared memory as N rows of K
// (128-byte rows, 128-byte swizzle), D in registers: d[4 j + i] of lane (g, q) is row g (i < 2) or
// g + 8, column 8 j + 2 q + i % 2.
#pragma once

#include <cstdint>

namespace gptoss::cuda::ptx {

// Orders the registers written before it with the products after it.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most `kGroups` committed groups are still running.
template <int kGroups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Keeps the compiler from moving uses of the accumulators across this place.
template <int kCount>
__device__ __forceinline__ void wgmma_pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Until here a register that running products read holds what it held.
__device__ __forceinline__ void wgmma_keep(std::uint32_t operand) {
  asm volatile("" ::"r"(operand) : "memory");
}

// Where B begins, as descriptors count: a multiple of 1,024 bytes, plus 2 for every 16 columns.
__device__ __forceinline__ std::uint32_t wgmma_descriptor_address(std::uint32_t shared_address) {
  constexpr std::uint32_t kUnused = 1u << 16;  // the leading stride, which the swizzle implies
  return (shared_address & 0x3ffff) >> 4 | kUnused;
}

// B: rows of 128 bytes, groups of 8 rows 1,024 bytes apart, 128-byte swizzle.
__device__ __forceinline__ std::uint64_t wgmma_descriptor(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kGroupStride = std::uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kGroupStride | address;
}

template <int kN>
struct Wgmma;

#define GPTOSS_TEXT0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GPTOSS_TEXT1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define GPTOSS_TEXT2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define GPTOSS_TEXT3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define GPTOSS_TEXT4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define GPTOSS_TEXT5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define GPTOSS_TEXT6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define GPTOSS_TEXT7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define GPTOSS_TEXT8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define GPTOSS_TEXT9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define GPTOSS_TEXT10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define GPTOSS_TEXT11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define GPTOSS_TEXT12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define GPTOSS_TEXT13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define GPTOSS_TEXT14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define GPTOSS_TEXT15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define GPTOSS_REGS(i)                                                                \
  "+f"(d[8 * (i)]), "+f"(d[8 * (i) + 1]), "+f"(d[8 * (i) + 2]), "+f"(d[8 * (i) + 3]), \
      "+f"(d[8 * (i) + 4]), "+f"(d[8 * (i) + 5]), "+f"(d[8 * (i) + 6]), "+f"(d[8 * (i) + 7])
#define GPTOSS_WGMMA(N, TEXT, A0, A1, A2, A3, B, ...)                                            \
  template <>                                                                                    \
  struct Wgmma<N> {                                                                              \
    __device__ __forceinline__ static void run(float (&d)[N / 2], const std::uint32_t (&a)[4],   \
                                               std::uint64_t b) {                                \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TEXT "}, {%" #A0 \
                   ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 0;"                       \
                   : __VA_ARGS__                                                                 \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }                                                                                            \
  }
GPTOSS_WGMMA(16, GPTOSS_TEXT0, 8, 9, 10, 11, 12, GPTOSS_REGS(0));
GPTOSS_WGMMA(32, GPTOSS_TEXT0 ", " GPTOSS_TEXT1, 16, 17, 18, 19, 20, GPTOSS_REGS(0),
             GPTOSS_REGS(1));
GPTOSS_WGMMA(48, GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2, 24, 25, 26, 27, 28,
             GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2));
GPTOSS_WGMMA(64, GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3, 32, 33, 34, 35,
             36, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2), GPTOSS_REGS(3));
GPTOSS_WGMMA(80,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4,
             40, 41, 42, 43, 44, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2), GPTOSS_REGS(3),
             GPTOSS_REGS(4));
GPTOSS_WGMMA(96,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4
                          ", " GPTOSS_TEXT5,
             48, 49, 50, 51, 52, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2), GPTOSS_REGS(3),
             GPTOSS_REGS(4), GPTOSS_REGS(5));
GPTOSS_WGMMA(112,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4
                          ", " GPTOSS_TEXT5 ", " GPTOSS_TEXT6,
             56, 57, 58, 59, 60, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2), GPTOSS_REGS(3),
             GPTOSS_REGS(4), GPTOSS_REGS(5), GPTOSS_REGS(6));
GPTOSS_WGMMA(128,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4
                          ", " GPTOSS_TEXT5 ", " GPTOSS_TEXT6 ", " GPTOSS_TEXT7,
             64, 65, 66, 67, 68, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2), GPTOSS_REGS(3),
             GPTOSS_REGS(4), GPTOSS_REGS(5), GPTOSS_REGS(6), GPTOSS_REGS(7));
GPTOSS_WGMMA(160,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4
                          ", " GPTOSS_TEXT5 ", " GPTOSS_TEXT6 ", " GPTOSS_TEXT7 ", " GPTOSS_TEXT8
                          ", " GPTOSS_TEXT9,
             80, 81, 82, 83, 84, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2), GPTOSS_REGS(3),
             GPTOSS_REGS(4), GPTOSS_REGS(5), GPTOSS_REGS(6), GPTOSS_REGS(7), GPTOSS_REGS(8),
             GPTOSS_REGS(9));
GPTOSS_WGMMA(192,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4
                          ", " GPTOSS_TEXT5 ", " GPTOSS_TEXT6 ", " GPTOSS_TEXT7 ", " GPTOSS_TEXT8
                          ", " GPTOSS_TEXT9 ", " GPTOSS_TEXT10 ", " GPTOSS_TEXT11,
             96, 97, 98, 99, 100, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2), GPTOSS_REGS(3),
             GPTOSS_REGS(4), GPTOSS_REGS(5), GPTOSS_REGS(6), GPTOSS_REGS(7), GPTOSS_REGS(8),
             GPTOSS_REGS(9), GPTOSS_REGS(10), GPTOSS_REGS(11));
GPTOSS_WGMMA(224,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4
                          ", " GPTOSS_TEXT5 ", " GPTOSS_TEXT6 ", " GPTOSS_TEXT7 ", " GPTOSS_TEXT8
                          ", " GPTOSS_TEXT9 ", " GPTOSS_TEXT10 ", " GPTOSS_TEXT11 ", " GPTOSS_TEXT12
                          ", " GPTOSS_TEXT13,
             112, 113, 114, 115, 116, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2),
             GPTOSS_REGS(3), GPTOSS_REGS(4), GPTOSS_REGS(5), GPTOSS_REGS(6), GPTOSS_REGS(7),
             GPTOSS_REGS(8), GPTOSS_REGS(9), GPTOSS_REGS(10), GPTOSS_REGS(11), GPTOSS_REGS(12),
             GPTOSS_REGS(13));
GPTOSS_WGMMA(256,
             GPTOSS_TEXT0 ", " GPTOSS_TEXT1 ", " GPTOSS_TEXT2 ", " GPTOSS_TEXT3 ", " GPTOSS_TEXT4
                          ", " GPTOSS_TEXT5 ", " GPTOSS_TEXT6 ", " GPTOSS_TEXT7 ", " GPTOSS_TEXT8
                          ", " GPTOSS_TEXT9 ", " GPTOSS_TEXT10 ", " GPTOSS_TEXT11 ", " GPTOSS_TEXT12
                          ", " GPTOSS_TEXT13 ", " GPTOSS_TEXT14 ", " GPTOSS_TEXT15,
             128, 129, 130, 131, 132, GPTOSS_REGS(0), GPTOSS_REGS(1), GPTOSS_REGS(2),
             GPTOSS_REGS(3), GPTOSS_REGS(4), GPTOSS_REGS(5), GPTOSS_REGS(6), GPTOSS_REGS(7),
             GPTOSS_REGS(8), GPTOSS_REGS(9), GPTOSS_REGS(10), GPTOSS_REGS(11), GPTOSS_REGS(12),
             GPTOSS_REGS(13), GPTOSS_REGS(14), GPTOSS_REGS(15));
#undef GPTOSS_WGMMA
#undef GPTOSS_REGS
#undef GPTOSS_TEXT0
#undef GPTOSS_TEXT1
#undef GPTOSS_TEXT2
#undef GPTOSS_TEXT3
#undef GPTOSS_TEXT4
#undef GPTOSS_TEXT5
#undef GPTOSS_TEXT6
#undef GPTOSS_TEXT7
#undef GPTOSS_TEXT8
#undef GPTOSS_TEXT9
#undef GPTOSS_TEXT10
#undef GPTOSS_TEXT11
#undef GPTOSS_TEXT12
#undef GPTOSS_TEXT13
#undef GPTOSS_TEXT14
#undef GPTOSS_TEXT15

}  // namespace gptoss::cuda::ptx
