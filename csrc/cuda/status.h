#pragma once

#include <string>

namespace gptoss::cuda {

// Empty when the device can be used, otherwise why not.
std::string device_status(int index);

}  // namespace gptoss::cuda
