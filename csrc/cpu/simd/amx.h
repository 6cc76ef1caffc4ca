// Tiles of AMX for bf16 and for bytes, and the vectors of AVX-512 that fill and empty them.
//
// A product has weights as A [16 rows][32 k], tokens as B [16 pairs of k][tokens][2] and outputs as
// C [16 rows][tokens] in float32: C += A * B. TDPBF16PS adds the sixteen even and the sixteen odd
// products of a row each in order, with one rounding a step from zero, then both sums, then that to
// C; subnormals count as zero (Intel SDM volume 2, TDPBF16PS). An output thus does not depend on
// its place in the tile, nor on what is beside it.
//
// Bytes have it the other way round: tokens are A, signed, weights B [8 quads of k][16 rows][4],
// unsigned, and outputs C [tokens][16 rows] in int32, exactly.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/inline.h"
#include "model/mxfp4.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr std::int64_t kTileRows = 16;      // of any tile
constexpr std::int64_t kTileRowBytes = 64;  // of a full one
constexpr std::int64_t kTileBytes = kTileRows * kTileRowBytes;
constexpr std::int64_t kTileDepth = 32;   // k of a full tile
constexpr std::int64_t kTileTokens = 16;  // of a full one

// The tiles of a product: two tiles of weights times two of tokens. In assembly, since the
// intrinsics of GCC 12 do not tell the compiler what memory they read and write.
enum Tile : int { kC00, kC10, kC01, kC11, kA0, kA1, kB0, kB1, kNumTiles };

// Holds the tiles' configuration while it lives.
class TileScope {
 public:
  struct Shape {
    std::int64_t rows;
    std::int64_t row_bytes;
  };

  // `tokens`: columns of B and C, 1 to 16.
  GPTOSS_INLINE explicit TileScope(std::int64_t tokens)
      : TileScope({kTileRows, kTileRowBytes}, {kTileRows, 4 * tokens}, {kTileRows, 4 * tokens}) {}
  GPTOSS_INLINE TileScope(Shape a, Shape b, Shape c) {
    struct alignas(64) {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64);
    for (int tile = 0; tile < kNumTiles; ++tile) {
      const bool is_a = tile == kA0 || tile == kA1;
      const bool is_b = tile == kB0 || tile == kB1;
      const Shape& shape = is_a ? a : is_b ? b : c;
      config.rows[tile] = static_cast<std::uint8_t>(shape.rows);
      config.row_bytes[tile] = static_cast<std::uint16_t>(shape.row_bytes);
    }
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  GPTOSS_INLINE ~TileScope() { asm volatile("tilerelease"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
GPTOSS_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
GPTOSS_INLINE void load_tile(const void* p, std::int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(p), "r"(stride_bytes), "i"(kTile)
               : "memory");
}
template <int kTile>
GPTOSS_INLINE void store_tile(void* p, std::int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(p), "r"(stride_bytes), "i"(kTile)
               : "memory");
}
template <int kC, int kA, int kB>
GPTOSS_INLINE void add_tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

// Exact: int32 C += signed bytes of A times unsigned ones of B.
template <int kC, int kA, int kB>
GPTOSS_INLINE void add_byte_tile_product() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

GPTOSS_INLINE __mmask16 first_of_16(std::int64_t count) {
  return count >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1u);
}
GPTOSS_INLINE __mmask32 first_of_32(std::int64_t count) {
  return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1u;
}

// r[i] lane j <-> r[j] lane i.
GPTOSS_INLINE void transpose(__m512i (&r)[16]) {
  __m512i a[16];
  GPTOSS_UNROLL
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  GPTOSS_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  GPTOSS_UNROLL
  for (int i = 0; i < 4; ++i) {  // r[4 * g + i] lane l holds columns 4 * l + i of rows 4 * g ...
    a[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    a[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    a[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    a[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  GPTOSS_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(a[4 + i], a[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(a[4 + i], a[12 + i], 0xdd);
  }
}

// 32 floats, of which `count` are there, to bf16, rounded to nearest even; what is not finite then
// becomes NaN, subnormals become zero.
GPTOSS_INLINE __m512i to_bf16_words(const float* p, std::int64_t count) {
  const __m512 low = _mm512_maskz_loadu_ps(first_of_16(count), p);
  const __m512 high = _mm512_maskz_loadu_ps(first_of_16(count > 16 ? count - 16 : 0), p + 16);
  const __m512i words = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  const __mmask32 bad = _mm512_cmpeq_epi16_mask(_mm512_and_si512(words, exponent), exponent);
  return _mm512_mask_mov_epi16(words, bad, _mm512_set1_epi16(0x7fc0));
}

// Words [32] of one row of MXFP4 weights by their scale byte: vpermb picks bytes of a table of the
// sixteen values times the scale, twice over. Scales whose values are not all normal in bf16 are
// kept out of the tiles.
constexpr int kMinTileScale = 2;    // 0.5 * 2^(2 - 127) is the smallest normal number
constexpr int kMaxTileScale = 252;  // 6 * 2^(252 - 127) is finite
struct Mxfp4Tables {
  alignas(64) std::uint8_t bytes[256][64] = {};
};
constexpr Mxfp4Tables make_mxfp4_tables() {
  constexpr int kOne = 0x3f80;
  constexpr int kMagnitudes[8] = {0,           kOne - 0x80, kOne,         kOne + 0x40,
                                  kOne + 0x80, kOne + 0xc0, kOne + 0x100, kOne + 0x140};
  Mxfp4Tables tables;
  for (int scale = kMinTileScale; scale <= kMaxTileScale; ++scale) {
    for (int i = 0; i < 32; ++i) {
      int word = kMagnitudes[i % 8];
      if (word != 0) word += (scale - 127) * 0x80;
      if (i % 16 >= 8) word |= 0x8000;
      tables.bytes[scale][2 * i] = static_cast<std::uint8_t>(word & 0xff);
      tables.bytes[scale][2 * i + 1] = static_cast<std::uint8_t>(word >> 8);
    }
  }
  return tables;
}
constexpr Mxfp4Tables kMxfp4Tables = make_mxfp4_tables();

// Which pair of a block of 32 stands in row `row` of B, given the order that expand_mxfp4_tile
// leaves the weights in: a lane holds four of the first and four of the last sixteen.
constexpr int mxfp4_pair(int row) {
  return row % 4 < 2 ? row / 4 * 2 + row % 4 : 8 + row / 4 * 2 + row % 4 - 2;
}

// One block of sixteen rows of MXFP4 to a tile of weights. Two permutations a row: 39 cycles a tile
// against 16 of one product (Granite Rapids); with vpermw and scales added it was 71.
GPTOSS_INLINE void expand_mxfp4_tile(const std::uint8_t* codes, std::int64_t code_stride,
                                     const std::uint8_t* scales, std::int64_t scale_stride,
                                     std::byte* out) {
  // Each byte takes eight bits from one below a nibble on: the nibble, then, in bits 1 to 4.
  const auto windows = [](std::uint64_t nibble) __attribute__((always_inline)) {
    std::uint64_t control = 0;
    for (std::uint64_t i = 0; i < 4; ++i) {
      const std::uint64_t from = (4 * (nibble + i) + 63) % 64;
      control |= (from | from << 8) << (16 * i);
    }
    return static_cast<long long>(control);
  };
  const __m512i control = _mm512_setr_epi64(windows(0), windows(0), windows(4), windows(4),
                                            windows(8), windows(8), windows(12), windows(12));
  const __m512i nibble_bits = _mm512_set1_epi16(0x1e1e);
  const __m512i second_byte = _mm512_set1_epi16(0x0100);
  GPTOSS_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    __m512i index = _mm512_multishift_epi64_epi8(control, _mm512_broadcast_i32x4(block));
    index = _mm512_ternarylogic_epi32(index, nibble_bits, second_byte, 0xea);  // (a & b) | c
    const __m512i table = _mm512_load_si512(kMxfp4Tables.bytes[*scales]);
    _mm512_store_si512(out + r * kTileRowBytes, _mm512_permutexvar_epi8(index, table));
    codes += code_stride;
    scales += scale_stride;
    asm("" : "+r"(codes), "+r"(scales));  // or the compiler keeps sixteen of each, in memory
  }
}

// Sixteen rows of a packed block of dense weights (pack_int8: [8][16 rows][4 codes], 128 added) to
// a tile B, whose columns are rows of the matrix: codes as bf16, which holds them. 2^23 + code is a
// float whose last bits are the code.
GPTOSS_INLINE void expand_int8_tile(const std::uint8_t* codes, std::byte* out) {
  const __m512i byte = _mm512_set1_epi32(0xff);
  const __m512i magic = _mm512_set1_epi32(0x4b000000);
  const __m512 excess = _mm512_set1_ps(8388608.0f + 128.0f);
  GPTOSS_UNROLL
  for (int group = 0; group < 8; ++group) {
    const __m512i four = _mm512_loadu_si512(codes + group * 64);
    const auto code = [&](int i) __attribute__((always_inline)) {
      const __m512i bits =
          _mm512_ternarylogic_epi32(_mm512_srli_epi32(four, 8 * i), byte, magic, 0xea);
      return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(bits), excess));
    };
    GPTOSS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m512i even = _mm512_srli_epi32(code(2 * half), 16);
      const __m512i odd = code(2 * half + 1);  // its lower bits are zero
      _mm512_store_si512(out + (2 * group + half) * kTileRowBytes, _mm512_or_si512(even, odd));
    }
  }
}

// Up to 32 bf16 of up to 16 rows to a tile, zeros elsewhere.
GPTOSS_INLINE void copy_bf16_tile(const bf16* p, std::int64_t stride, std::int64_t rows,
                                  std::int64_t cols, std::byte* out) {
  const __mmask32 there = first_of_32(cols);
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    const __m512i words = _mm512_maskz_loadu_epi16(r < rows ? there : 0, p + r * stride);
    _mm512_store_si512(out + r * kTileRowBytes, words);
  }
}

// Rows of B from sixteen tokens' words [32]: `width` columns; row i holds pair `pair(i)`.
template <typename Pair>
GPTOSS_INLINE void store_token_tile(__m512i (&words)[16], std::int64_t width, const Pair& pair,
                                    std::byte* out) {
  transpose(words);
  if (width == kTileTokens) {
    GPTOSS_UNROLL
    for (int i = 0; i < 16; ++i) _mm512_store_si512(out + i * kTileRowBytes, words[pair(i)]);
    return;
  }
  const __mmask16 columns = first_of_16(width);
  GPTOSS_UNROLL
  for (int i = 0; i < 16; ++i) {
    _mm512_mask_storeu_epi32(out + i * 4 * width, columns, words[pair(i)]);
  }
}

// A tile of outputs [16 rows][64 bytes] to vectors by token.
GPTOSS_INLINE void load_outputs(const float* c, __m512 (&by_token)[16]) {
  __m512i r[16];
  GPTOSS_UNROLL
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(c + 16 * i);
  transpose(r);
  GPTOSS_UNROLL
  for (int i = 0; i < 16; ++i) by_token[i] = _mm512_castsi512_ps(r[i]);
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
