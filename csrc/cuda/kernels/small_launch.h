// Choice of a small regime's kernel by device and number of rows, and its launch.
#pragma once

#include <algorithm>

#include "cuda/device/weight_ring.h"
#include "cuda/kernels/small_kernels.h"
#include "cuda/kernels/small_layout.h"
#include "cuda/launch.h"

namespace gptoss::cuda {

template <class Args>
struct SmallVariants {
  using Kernel = void (*)(Args);
  Kernel async[3];  // 1 token, up to 8, up to 16
  Kernel bulk[3];
};

#define GPTOSS_SMALL_KERNELS(kernel)                                                              \
  {                                                                                               \
    {kernel<1, RingCopy::kAsync>, kernel<8, RingCopy::kAsync>,                                    \
     kernel<kGroupRows, RingCopy::kAsync>},                                                       \
    {                                                                                             \
      kernel<1, RingCopy::kBulk>, kernel<8, RingCopy::kBulk>, kernel<kGroupRows, RingCopy::kBulk> \
    }                                                                                             \
  }

struct SmallShape {
  int threads;
  std::int64_t units;  // blocks that have something to do
  int groups = 1;      // of rows, which share the device's multiprocessors
  std::size_t smem;
  // One block an SM: where the next kernel's block fits beside it, its first weights delay what
  // this one still reads, and a token takes 2,890 us instead of 1,839 (gpt-oss-20b on an H200).
  std::size_t least_smem = 150000;
};

// Groups of kGroupRows rows that a dense product's blocks take side by side: all of them read the
// same tiles at about the same time, from device memory once.
inline int row_groups(int num_rows) {
  return (num_rows + kGroupRows - 1) / kGroupRows;
}

template <class Args>
void launch_small(const DeviceInfo& device, Dependence dependence, int num_rows, const Args& args,
                  const char* op, cudaStream_t stream, const SmallVariants<Args>& variants,
                  const SmallShape& shape) {
  const int size = num_rows == 1 ? 0 : num_rows <= 8 ? 1 : 2;
  const auto kernel = device.compute_capability >= 90 ? variants.bulk[size] : variants.async[size];
  constexpr std::size_t kStatic = 8192;  // at most, of the kernels' own
  launch(kernel,
         {.blocks =
              static_cast<int>(std::min<std::int64_t>(device.num_sms / shape.groups, shape.units)),
          .groups = shape.groups,
          .threads = shape.threads,
          .smem = std::max(shape.smem, std::min(shape.least_smem, device.smem_per_block - kStatic)),
          .dependence = dependence},
         args, op, stream);
}

}  // namespace gptoss::cuda
