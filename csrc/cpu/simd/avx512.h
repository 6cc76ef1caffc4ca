// Float lanes of AVX-512 F, BW, DQ, VL: sixteen a vector. The names are explained in scalar.h.
#pragma once

// GCC 12's own headers hold values that they mean to leave undefined (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/inline.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kAccumulators = 24;

struct F32 {
  __m512 v;
};
struct Mask {
  __mmask16 bits;
};

GPTOSS_INLINE F32 set(float value) {
  return {_mm512_set1_ps(value)};
}
GPTOSS_INLINE F32 zero() {
  return {_mm512_setzero_ps()};
}

GPTOSS_INLINE __mmask16 first_lanes(std::int64_t count) {
  return count <= 0        ? __mmask16{0}
         : count >= kLanes ? static_cast<__mmask16>(0xffff)
                           : static_cast<__mmask16>((1u << count) - 1u);
}
GPTOSS_INLINE Mask lanes_between(std::int64_t begin, std::int64_t end) {
  return {static_cast<__mmask16>(first_lanes(end) & ~first_lanes(begin))};
}
GPTOSS_INLINE F32 select(Mask mask, F32 yes, F32 no) {
  return {_mm512_mask_blend_ps(mask.bits, no.v, yes.v)};
}

GPTOSS_INLINE F32 load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
GPTOSS_INLINE F32 load_partial(const float* p, std::int64_t count) {
  return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
}
GPTOSS_INLINE F32 widen(__m256i halves) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
GPTOSS_INLINE F32 load(const bf16* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
GPTOSS_INLINE F32 load_partial(const bf16* p, std::int64_t count) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
GPTOSS_INLINE void store(float* p, F32 v) {
  _mm512_storeu_ps(p, v.v);
}
GPTOSS_INLINE void store_partial(float* p, F32 v, std::int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), v.v);
}
GPTOSS_INLINE void store(bf16* p, F32 v) {
  const __m512i bits = _mm512_castps_si512(v.v);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
  const __m512i words = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(words));
}

GPTOSS_INLINE F32 operator+(F32 a, F32 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 operator-(F32 a, F32 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 operator*(F32 a, F32 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 operator/(F32 a, F32 b) {
  return {_mm512_div_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
GPTOSS_INLINE F32 fnma(F32 a, F32 b, F32 c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
// The instruction returns its second operand where either is NaN.
GPTOSS_INLINE F32 min(F32 bound, F32 x) {
  return {_mm512_min_ps(bound.v, x.v)};
}
GPTOSS_INLINE F32 max(F32 bound, F32 x) {
  return {_mm512_max_ps(bound.v, x.v)};
}

GPTOSS_INLINE __m256 add_halves(__m512 v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}
GPTOSS_INLINE __m128 add_quarters(__m512 v) {
  const __m256 sum = add_halves(v);
  return _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
}
GPTOSS_INLINE float reduce_add(F32 v) {
  __m128 sum = add_quarters(v.v);
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
// The tree of reduce_add for four vectors at once, transposed.
GPTOSS_INLINE void reduce_add4(F32 a, F32 b, F32 c, F32 d, float* out) {
  const __m128 va = add_quarters(a.v);
  const __m128 vb = add_quarters(b.v);
  const __m128 vc = add_quarters(c.v);
  const __m128 vd = add_quarters(d.v);
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(va, vb), _mm_movehl_ps(vb, va));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(vc, vd), _mm_movehl_ps(vd, vc));
  _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}
GPTOSS_INLINE float reduce_max(F32 v) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

GPTOSS_INLINE F32 scale_by_power_of_two(F32 p, F32 n) {
  return {_mm512_scalef_ps(p.v, n.v)};
}

GPTOSS_INLINE void deinterleave(F32 a, F32 b, F32& x, F32& y) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  x.v = _mm512_permutex2var_ps(a.v, even, b.v);
  y.v = _mm512_permutex2var_ps(a.v, odd, b.v);
}

GPTOSS_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
