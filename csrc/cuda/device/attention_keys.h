// A warp's copies of keys and values from pages (step.h) to shared memory, a group of 32 keys at a
// time: rows of 128 bytes, 16-byte chunk c of key k at chunk c ^ (k % 8), so that ldmatrix meets no
// bank twice.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/layout.h"
#include "cuda/ptx/async_copy.h"
#include "model/kv_plan.h"

namespace gptoss::cuda {

constexpr int kKeyGroup = 32;  // groups begin at absolute multiples, and so lie in one page
static_assert(kPageTokens % kKeyGroup == 0);
constexpr int kKeyBytes = static_cast<int>(kHeadDim) * 2;
constexpr int kKeyGroupBytes = kKeyGroup * kKeyBytes;  // of keys; as many of values follow
constexpr int kCopyBytes = 16;                         // of an asynchronous copy
constexpr int kKeyChunks = kKeyBytes / kCopyBytes;

// The keys that a row sees.
struct Keys {
  __nv_bfloat16* const* pages;  // of page 0
  std::int64_t offset;          // bytes from a page to the kv head's keys
  std::int64_t to_values;       // bytes from keys to values
  int first;                    // keys that the row sees
  int end;
  int old_end;  // keys before this were written by earlier steps

  __device__ const std::uint8_t* group(int begin) const {
    constexpr int kTokens = static_cast<int>(kPageTokens);
    const auto* page = reinterpret_cast<const std::uint8_t*>(pages[begin / kTokens]);
    return page + offset + begin % kTokens * kKeyBytes;
  }
};

enum class Part { kOld, kNew, kAll };

// Part of a group's keys and values to shared memory. Keys out of
// sight become zeros: their weight is zero, but what stands in the page might not be a number.
template <Part kPart>
__device__ __forceinline__ void copy_group(const Keys& keys, int begin, std::uint8_t* stage,
                                           int lane) {
  const std::uint8_t* from = keys.group(begin) + lane * kCopyBytes;
#pragma unroll
  for (int i = 0; i < kKeyGroup * kKeyChunks / kWarp; ++i) {
    const int in_group = i * (kWarp / kKeyChunks) + lane / kKeyChunks;
    const int key = begin + in_group;
    const bool visible = key >= keys.first && key < keys.end;
    const bool fresh = visible && key >= keys.old_end;
    if (kPart == Part::kOld && fresh || kPart == Part::kNew && !fresh) continue;
    const int chunk = (lane % kKeyChunks) ^ (in_group % 8);
    std::uint8_t* to = stage + in_group * kKeyBytes + chunk * kCopyBytes;
    const std::uint8_t* source = from + i * kWarp * kCopyBytes;
    ptx::cp_async_16_zero_fill(to, source, visible ? kCopyBytes : 0);
    ptx::cp_async_16_zero_fill(to + kKeyGroupBytes, source + keys.to_values,
                               visible ? kCopyBytes : 0);
  }
}

}  // namespace gptoss::cuda
