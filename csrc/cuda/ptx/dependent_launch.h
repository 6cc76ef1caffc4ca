// Programmatic dependent launch (PTX ISA, griddepcontrol), 9.0 and later; on older devices, where
// a launch carries no such attribute, both do nothing.
#pragma once

namespace gptoss::cuda::ptx {

// The next kernel of the stream may start once every block of this one has said so or ended.
__device__ __forceinline__ void launch_dependents() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before this one have ended and what they wrote can be read.
__device__ __forceinline__ void wait_for_dependencies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace gptoss::cuda::ptx
