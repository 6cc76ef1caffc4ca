// The four error classes of the library, one to one with the Python classes in errors.py.
// Messages read `[op] what was expected, what came, what to do`.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace gptoss {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
class InvalidArgument : public Error {
 public:
  using Error::Error;
};
class CheckpointError : public Error {
 public:
  using Error::Error;
};
class OutOfMemory : public Error {
 public:
  using Error::Error;
};
class DeviceError : public Error {
 public:
  using Error::Error;
};

// Concatenates anything that streams; used on error paths only.
template <typename... Parts>
std::string cat(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}

}  // namespace gptoss

// GPTOSS_REQUIRE(InvalidArgument, n > 0, "[op] expected ..., got ", n, "; ...")
#define GPTOSS_REQUIRE(ErrorClass, condition, ...)            \
  do {                                                        \
    if (!(condition)) [[unlikely]]                            \
      throw ::gptoss::ErrorClass(::gptoss::cat(__VA_ARGS__)); \
  } while (false)
