// One way to launch a kernel of a step.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/device.h"
#include "cuda/kernels/attention.h"

namespace gptoss::cuda {

struct LaunchShape {
  int blocks = 1;  // along x
  int groups = 1;  // along y
  int threads = 1;
  std::size_t smem = 0;  // dynamic shared memory, bytes
  Dependence dependence = Dependence::kProgrammatic;
  int cluster = 1;  // blocks
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
  cudaLaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (shape.dependence == Dependence::kProgrammatic) {
    attributes[num_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[num_attributes++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[num_attributes].id = cudaLaunchAttributeClusterDimension;
    attributes[num_attributes++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.groups));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.smem;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  check(cudaLaunchKernelEx(&config, kernel, args), op);
}

}  // namespace gptoss::cuda
