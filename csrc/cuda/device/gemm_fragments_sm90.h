// What the Hopper products do with a stage in shared memory: weights to A fragments in registers,
// and wgmma with them.
#pragma once

#include <cstdint>

#include "cuda/device/gemm.h"
#include "cuda/device/mxfp4_bf16.h"
#include "cuda/ptx/shared_load.h"
#include "cuda/ptx/wgmma.h"

namespace gptoss::cuda {

constexpr int kWarpgroupThreads = 128;

using Fragments = std::uint32_t[kStageSteps][4];

// A consumer lane's part of one row tile of a stage: fetched as soon as it is there, made fragments
// when the registers for those are free.
template <WeightFormat kFormat>
struct StageWeights;

template <>
struct StageWeights<WeightFormat::kBf16> {
  std::uint32_t address;

  __device__ __forceinline__ void fetch(std::uint32_t tile, int lane) {
    address = tile + lane * 16;
  }
  __device__ __forceinline__ void decode(Fragments& a) const {
#pragma unroll
    for (int i = 0; i < kStageSteps; ++i) {
      const uint4 v = ptx::load_shared_16(address + i * kDenseTileBytes);
      a[i][0] = v.x;
      a[i][1] = v.y;
      a[i][2] = v.z;
      a[i][3] = v.w;
    }
  }
};

template <>
struct StageWeights<WeightFormat::kMxfp4> {
  uint4 codes;
  std::uint32_t scales;

  __device__ __forceinline__ void fetch(std::uint32_t tile, int lane) {
    codes = ptx::load_shared_16(tile + lane * 16);
    scales = ptx::load_shared_4(tile + kMxCodeBytes + lane / 4 * 4);
  }
  __device__ __forceinline__ void decode(Fragments& a) const { decode_mxfp4(codes, scales, a); }
};

// Until here the compiler must keep the registers of fragments that products may still be reading:
// it counts them as free from the instruction on that starts those.
__device__ __forceinline__ void keep(const Fragments& a) {
#pragma unroll
  for (int i = 0; i < 4 * kStageSteps; ++i) ptx::wgmma_keep(a[i / 4][i % 4]);
}

// A stage's products for the first kTokens tokens.
template <int kTokens, int kCount>
__device__ __forceinline__ void issue(std::uint32_t descriptor, const Fragments& a,
                                      float (&d)[kCount]) {
  ptx::wgmma_fence();  // the fragments are written before the products read them
#pragma unroll
  for (int step = 0; step < kStageSteps; ++step) {
    ptx::Wgmma<kTokens>::run(reinterpret_cast<float (&)[kTokens / 2]>(d), a[step],
                             ptx::wgmma_descriptor(descriptor + step * kTileK * 2 / 16));
  }
  ptx::wgmma_commit();
}

}  // namespace gptoss::cuda
