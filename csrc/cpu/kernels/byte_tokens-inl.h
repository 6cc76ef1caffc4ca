// What products of a few tokens on tiles of bytes share: the tokens as tiles A, and what vectors do
// with a product's sums. One product has the high and the low bytes of all tokens; vectors put both
// together, scale them and add them up, as integer products do, with the same bits.
#pragma once

#include "cpu/kernels/amx_product-inl.h"
#include "cpu/kernels/int8_product-inl.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

// Tokens of a tile: A has the high bytes of each, then the low ones.
constexpr int kByteTileTokens = 8;

// Packed tokens, block after block: {high codes [kTokens][32], low codes [kTokens][32], scales
// [kTokens], offsets [kTokens]}; an offset is what the weights' own adds to a dot.
template <int kTokens>
struct ByteTokens {
  static_assert(kTokens <= kByteTileTokens && 2 * kByteTileTokens == kTileRows);
  static constexpr std::int64_t kCodes = 2 * kTokens * kMxBlock;
  static constexpr std::int64_t kBlock = kCodes + kTokens * 8;
  // Of sixteen rows: [high, low][kTokens][16 rows] int32.
  static constexpr std::int64_t kProduct = 2 * kTokens * kTileRowBytes;

  const std::byte* data;

  GPTOSS_INLINE const std::byte* codes(std::int64_t block) const { return data + block * kBlock; }
  GPTOSS_INLINE const float* scales(std::int64_t block) const {
    return reinterpret_cast<const float*>(codes(block) + kCodes);
  }
  GPTOSS_INLINE const std::int32_t* offsets(std::int64_t block) const {
    return reinterpret_cast<const std::int32_t*>(codes(block) + kCodes) + kTokens;
  }

  // acc [16 rows] of a token += block `index`, whose sums are at `product`.
  GPTOSS_INLINE __m512 add(__m512 acc, const std::byte* product, std::int64_t index, int token,
                           __m512 w_scale) const {
    const std::byte* at = product + token * kTileRowBytes;
    const __m512i high = _mm512_slli_epi32(_mm512_load_si512(at), 7);
    const __m512i low = _mm512_load_si512(at + kTokens * kTileRowBytes);
    const __m512i dot =
        _mm512_sub_epi32(_mm512_add_epi32(high, low), _mm512_set1_epi32(offsets(index)[token]));
    return add_scaled_dot(acc, dot, scales(index)[token], w_scale);
  }
};

// The shapes of the tiles then.
template <int kTokens>
struct ByteTileScope : TileScope {
  GPTOSS_INLINE ByteTileScope()
      : TileScope({2 * kTokens, kMxBlock}, {kMxBlock / 4, kTileRowBytes},
                  {2 * kTokens, kTileRowBytes}) {}
};

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
