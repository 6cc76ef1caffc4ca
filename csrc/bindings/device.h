// Devices by name: "cpu", "cuda", "cuda:N".
#pragma once

#include <string>

#include "base/error.h"

namespace gptoss::bindings {

enum class DeviceKind { kCpu, kCuda };
struct DeviceName {
  DeviceKind kind;
  int index;
};

inline DeviceName device_of(const std::string& name, const char* op) {
  if (name == "cpu") return {DeviceKind::kCpu, 0};
  if (name == "cuda") return {DeviceKind::kCuda, 0};
  const std::string digits = name.starts_with("cuda:") ? name.substr(5) : "";
  const bool ok = !digits.empty() && digits.size() <= 4 &&
                  digits.find_first_not_of("0123456789") == std::string::npos;
  GPTOSS_REQUIRE(InvalidArgument, ok, "[", op,
                 "] device: expected 'cpu', 'cuda' or 'cuda:N', got '", name, "'");
  return {DeviceKind::kCuda, std::stoi(digits)};
}

}  // namespace gptoss::bindings
