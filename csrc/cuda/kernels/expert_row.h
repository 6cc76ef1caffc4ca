// The experts of one row on Hopper (device/expert_row.h): what gate_up_small and down_small launch
// for a token alone.
#pragma once

#include <cstdint>

#include "cuda/kernels/small_kernels.h"

namespace gptoss::cuda {

// Whether they take this model's row on this device.
bool expert_row_fits(const ModelConfig& config, const DeviceInfo& device);
void gate_up_row(const GateUpSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                 cudaStream_t stream);
void down_row(const DownSmallArgs& args, const DeviceInfo& device, Dependence dependence,
              cudaStream_t stream);

}  // namespace gptoss::cuda
