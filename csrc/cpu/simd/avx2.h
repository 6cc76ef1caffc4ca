// Float lanes of AVX2 with FMA: eight a vector. The names are explained in scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/inline.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr int kLanes = 8;
constexpr int kAccumulators = 12;

struct F32 {
  __m256 v;
};
struct Mask {
  __m256 v;
};

GPTOSS_INLINE F32 set(float value) {
  return {_mm256_set1_ps(value)};
}
GPTOSS_INLINE F32 zero() {
  return {_mm256_setzero_ps()};
}

// Lanes i with begin <= i < end; the bounds may lie outside the lanes.
GPTOSS_INLINE Mask lanes_between(std::int64_t begin, std::int64_t end) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i from_begin =
      _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(static_cast<int>(begin) - 1));
  const __m256i before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), lane);
  return {_mm256_castsi256_ps(_mm256_and_si256(from_begin, before_end))};
}
GPTOSS_INLINE F32 select(Mask mask, F32 yes, F32 no) {
  return {_mm256_blendv_ps(no.v, yes.v, mask.v)};
}

GPTOSS_INLINE F32 load(const float* p) {
  return {_mm256_loadu_ps(p)};
}
GPTOSS_INLINE F32 load_partial(const float* p, std::int64_t count) {
  return {_mm256_maskload_ps(p, _mm256_castps_si256(lanes_between(0, count).v))};
}
GPTOSS_INLINE F32 widen(__m128i halves) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
}
GPTOSS_INLINE F32 load(const bf16* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
GPTOSS_INLINE F32 load_partial(const bf16* p, std::int64_t count) {
  bf16 lanes[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
GPTOSS_INLINE void store(float* p, F32 v) {
  _mm256_storeu_ps(p, v.v);
}
GPTOSS_INLINE void store_partial(float* p, F32 v, std::int64_t count) {
  _mm256_maskstore_ps(p, _mm256_castps_si256(lanes_between(0, count).v), v.v);
}
GPTOSS_INLINE void store(bf16* p, F32 v) {
  const __m256i bits = _mm256_castps_si256(v.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

GPTOSS_INLINE F32 operator+(F32 a, F32 b) {
  return {_mm256_add_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 operator-(F32 a, F32 b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 operator*(F32 a, F32 b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 operator/(F32 a, F32 b) {
  return {_mm256_div_ps(a.v, b.v)};
}
GPTOSS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
GPTOSS_INLINE F32 fnma(F32 a, F32 b, F32 c) {
  return {_mm256_fnmadd_ps(a.v, b.v, c.v)};
}
// The instruction returns its second operand where either is NaN.
GPTOSS_INLINE F32 min(F32 bound, F32 x) {
  return {_mm256_min_ps(bound.v, x.v)};
}
GPTOSS_INLINE F32 max(F32 bound, F32 x) {
  return {_mm256_max_ps(bound.v, x.v)};
}

GPTOSS_INLINE float reduce_add(F32 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v.v), _mm256_extractf128_ps(v.v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
// The tree of reduce_add for four vectors at once, transposed.
GPTOSS_INLINE void reduce_add4(F32 a, F32 b, F32 c, F32 d, float* out) {
  const __m128 va = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 vb = _mm_add_ps(_mm256_castps256_ps128(b.v), _mm256_extractf128_ps(b.v, 1));
  const __m128 vc = _mm_add_ps(_mm256_castps256_ps128(c.v), _mm256_extractf128_ps(c.v, 1));
  const __m128 vd = _mm_add_ps(_mm256_castps256_ps128(d.v), _mm256_extractf128_ps(d.v, 1));
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(va, vb), _mm_movehl_ps(vb, va));  // a0+a2 a1+a3 b..
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(vc, vd), _mm_movehl_ps(vd, vc));
  _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}
GPTOSS_INLINE float reduce_max(F32 v) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(v.v), _mm256_extractf128_ps(v.v, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

GPTOSS_INLINE F32 scale_by_power_of_two(F32 p, F32 n) {
  // Two factors, since 2^n alone may overflow or be subnormal.
  const __m256i exponent = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(exponent, half), bias), 23);
  return {
      _mm256_mul_ps(_mm256_mul_ps(p.v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))};
}

GPTOSS_INLINE void deinterleave(F32 a, F32 b, F32& x, F32& y) {
  const __m256 lo = _mm256_permute2f128_ps(a.v, b.v, 0x20);
  const __m256 hi = _mm256_permute2f128_ps(a.v, b.v, 0x31);
  x.v = _mm256_shuffle_ps(lo, hi, 0x88);
  y.v = _mm256_shuffle_ps(lo, hi, 0xdd);
}

GPTOSS_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
