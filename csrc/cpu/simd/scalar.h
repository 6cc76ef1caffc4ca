// Float lanes for any processor: eight emulated lanes in two vectors of the compiler's own, which
// it lowers to SSE2, NEON or plain scalars. fma is a product and a sum, rounded twice.
//
// The same names stand in avx2.h and avx512.h; the kernels see nothing else of an instruction set.
// Everything is in an anonymous namespace: code compiled for a higher instruction set must leave no
// symbol that the linker could pick for every processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/dtype.h"
#include "cpu/simd/inline.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

constexpr int kLanes = 8;
// Sums that a micro-kernel can keep in registers beside its operands.
constexpr int kAccumulators = 4;

using Float4 [[gnu::vector_size(16)]] = float;
using Int4 [[gnu::vector_size(16)]] = std::int32_t;

struct F32 {
  Float4 lo, hi;
};
struct Mask {
  Int4 lo, hi;
};

GPTOSS_INLINE F32 set(float value) {
  const Float4 v = {value, value, value, value};
  return {v, v};
}
GPTOSS_INLINE F32 zero() {
  return set(0.0f);
}

GPTOSS_INLINE F32 load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// Lanes from `count` on are zero; their memory is not touched. 0 <= count <= kLanes.
GPTOSS_INLINE F32 load_partial(const float* p, std::int64_t count) {
  float lanes[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    if (i < count) lanes[i] = p[i];
  }
  return load(lanes);
}
GPTOSS_INLINE F32 load(const bf16* p) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}
GPTOSS_INLINE F32 load_partial(const bf16* p, std::int64_t count) {
  float lanes[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    if (i < count) lanes[i] = to_float(p[i]);
  }
  return load(lanes);
}
GPTOSS_INLINE void store(float* p, F32 v) {
  std::memcpy(p, &v, sizeof v);
}
GPTOSS_INLINE void store_partial(float* p, F32 v, std::int64_t count) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) {
    if (i < count) p[i] = lanes[i];
  }
}
// Rounds to nearest even; NaN stays NaN.
GPTOSS_INLINE void store(bf16* p, F32 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(lanes[i]);
}

GPTOSS_INLINE F32 operator+(F32 a, F32 b) {
  return {a.lo + b.lo, a.hi + b.hi};
}
GPTOSS_INLINE F32 operator-(F32 a, F32 b) {
  return {a.lo - b.lo, a.hi - b.hi};
}
GPTOSS_INLINE F32 operator*(F32 a, F32 b) {
  return {a.lo * b.lo, a.hi * b.hi};
}
GPTOSS_INLINE F32 operator/(F32 a, F32 b) {
  return {a.lo / b.lo, a.hi / b.hi};
}
// a * b + c.
GPTOSS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return a * b + c;
}
// c - a * b.
GPTOSS_INLINE F32 fnma(F32 a, F32 b, F32 c) {
  return c - a * b;
}
// Where x is NaN the result is x, so the bound comes first.
GPTOSS_INLINE F32 min(F32 bound, F32 x) {
  return {bound.lo < x.lo ? bound.lo : x.lo, bound.hi < x.hi ? bound.hi : x.hi};
}
GPTOSS_INLINE F32 max(F32 bound, F32 x) {
  return {bound.lo > x.lo ? bound.lo : x.lo, bound.hi > x.hi ? bound.hi : x.hi};
}

// Lanes i with begin <= i < end; the bounds may lie outside the lanes.
GPTOSS_INLINE Mask lanes_between(std::int64_t begin, std::int64_t end) {
  std::int32_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = begin <= i && i < end ? -1 : 0;
  Mask mask;
  std::memcpy(&mask, lanes, sizeof mask);
  return mask;
}
GPTOSS_INLINE F32 select(Mask mask, F32 yes, F32 no) {
  return {mask.lo ? yes.lo : no.lo, mask.hi ? yes.hi : no.hi};
}

// Halves are added until one lane is left: the same tree at every call.
GPTOSS_INLINE float reduce_add(F32 v) {
  const Float4 sum = v.lo + v.hi;
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
GPTOSS_INLINE void reduce_add4(F32 a, F32 b, F32 c, F32 d, float* out) {
  out[0] = reduce_add(a);
  out[1] = reduce_add(b);
  out[2] = reduce_add(c);
  out[3] = reduce_add(d);
}
// A NaN lane may be dropped.
GPTOSS_INLINE float reduce_max(F32 v) {
  const Float4 top = v.lo > v.hi ? v.lo : v.hi;
  const float a = top[0] > top[2] ? top[0] : top[2];
  const float b = top[1] > top[3] ? top[1] : top[3];
  return a > b ? a : b;
}

// p * 2^n for integral n in [-150, 128], rounded once where the result is subnormal. NaN in p
// stays.
GPTOSS_INLINE F32 scale_by_power_of_two(F32 p, F32 n) {
  // Adding 1.5 * 2^23 leaves n in the low bits, NaN without undefined conversions. Two factors,
  // since 2^n alone may overflow or be subnormal.
  float lanes[kLanes];
  float first[kLanes];
  float second[kLanes];
  store(lanes, n + set(12582912.0f));
  for (int i = 0; i < kLanes; ++i) {
    // The low nine bits are n modulo 512.
    const std::uint32_t low = std::bit_cast<std::uint32_t>(lanes[i]) & 0x1ffu;
    const std::int32_t exponent = static_cast<std::int32_t>(low ^ 0x100u) - 0x100;
    const std::int32_t half = exponent >> 1;
    first[i] = std::bit_cast<float>(static_cast<std::uint32_t>(half + 127) << 23);
    second[i] = std::bit_cast<float>(static_cast<std::uint32_t>(exponent - half + 127) << 23);
  }
  return p * load(first) * load(second);
}

// Interleaved pairs x0 y0 x1 y1 ... of two vectors to the xs and the ys.
GPTOSS_INLINE void deinterleave(F32 a, F32 b, F32& x, F32& y) {
  x = {__builtin_shufflevector(a.lo, a.hi, 0, 2, 4, 6),
       __builtin_shufflevector(b.lo, b.hi, 0, 2, 4, 6)};
  y = {__builtin_shufflevector(a.lo, a.hi, 1, 3, 5, 7),
       __builtin_shufflevector(b.lo, b.hi, 1, 3, 5, 7)};
}

GPTOSS_INLINE void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 2);
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
