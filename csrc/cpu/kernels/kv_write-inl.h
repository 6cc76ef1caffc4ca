// kv_write: one layer's keys and values of consecutive positions, float32
// [num_tokens][num_kv_heads * 64], to their pages (model/kv_plan.h), bf16 rounded to nearest even
// or float32. Keys are transposed, one element a cache line: a page's lines are met again by the
// next 63 positions.
#pragma once

#include "cpu/kernel_table.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

GPTOSS_INLINE void put(float* to, float value) {
  *to = value;
}
GPTOSS_INLINE void put(bf16* to, float value) {
  *to = to_bf16(value);
}

template <typename Element>
void kv_write_as(const KvWriteArgs& args, Range tokens) {
  constexpr std::int64_t kHeadElements = kHeadDim * kPageTokens;
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const std::int64_t position = args.position + token;
    const std::int64_t slot = position % kPageTokens;
    Element* keys =
        reinterpret_cast<Element*>(args.pages[position / kPageTokens - args.first_page]);
    Element* values = keys + args.num_kv_heads * kHeadElements;
    for (std::int64_t head = 0; head < args.num_kv_heads; ++head) {
      const float* k = args.k.row(token) + head * kHeadDim;
      const float* v = args.v.row(token) + head * kHeadDim;
      Element* key_column = keys + head * kHeadElements + slot;
      Element* value_row = values + head * kHeadElements + slot * kHeadDim;
      for (std::int64_t dim = 0; dim < kHeadDim; ++dim) put(key_column + dim * kPageTokens, k[dim]);
      for (std::int64_t dim = 0; dim < kHeadDim; dim += kLanes)
        store(value_row + dim, load(v + dim));
    }
  }
}

void kv_write(const KvWriteArgs& args, Range tokens) {
  if (args.dtype == KvDtype::kBf16) {
    kv_write_as<bf16>(args, tokens);
  } else {
    kv_write_as<float>(args, tokens);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
