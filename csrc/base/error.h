// The four error classes of the library, one to one with the Python classes in errors.py.
// Messages read `[op] what was expected, what came, what to do`.
#pragma once

#include <charconv>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

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

// Concatenates text and numbers; used on error paths and in reports. No streams: their formatting
// depends on the process's locale, and their static state does not survive two C++ runtimes in one
// process.
inline void append_to(std::string& out, std::string_view text) {
  out += text;
}
inline void append_to(std::string& out, char text) {
  out += text;
}
template <typename Number>
  requires std::is_arithmetic_v<Number>
void append_to(std::string& out, Number number) {
  char digits[32];
  out.append(digits, std::to_chars(digits, digits + sizeof(digits), number).ptr);
}

template <typename... Parts>
std::string cat(const Parts&... parts) {
  std::string out;
  (append_to(out, parts), ...);
  return out;
}

}  // namespace gptoss

// GPTOSS_REQUIRE(InvalidArgument, n > 0, "[op] expected ..., got ", n, "; ...")
#define GPTOSS_REQUIRE(ErrorClass, condition, ...)            \
  do {                                                        \
    if (!(condition)) [[unlikely]]                            \
      throw ::gptoss::ErrorClass(::gptoss::cat(__VA_ARGS__)); \
  } while (false)
