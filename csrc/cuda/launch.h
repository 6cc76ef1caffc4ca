// One way to launch a kernel of a step.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/device.h"
#include "cuda/kernels/attention.h"

namespace gptoss::cuda {

struct LaunchShape {
  int blocks = 1;
  int threads = 1;
  std::size_t smem = 0;  // dynamic shared memory, bytes
  Dependence dependence = Dependence::kProgrammatic;
};

// With all of an SM's L1 as shared memory: blocks of two kernels share an SM only when both ask
// for the same split.
template <class Args>
void launch(void (*kernel)(Args), const LaunchShape& shape, const Args& args, const char* op,
            cudaStream_t stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        op);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.smem)),
        op);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.smem;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.dependence == Dependence::kProgrammatic ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args), op);
}

}  // namespace gptoss::cuda
