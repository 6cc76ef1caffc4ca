#include "base/cpu_features.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gptoss {
namespace {

constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

#if defined(__x86_64__)

struct Registers {
  std::uint32_t eax = 0;
  std::uint32_t ebx = 0;
  std::uint32_t ecx = 0;
  std::uint32_t edx = 0;
};

// Zeros for a leaf that the processor does not have.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool has_bits(std::uint64_t value, std::uint64_t bits) {
  return (value & bits) == bits;
}

// Which register states the operating system saves at a context switch. In assembly, since the
// intrinsic needs a compiler flag that this file must do without.
std::uint64_t saved_states() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

// Of a processor with AVX-512. Intel SDM volume 1, 18.2, and the table of CPUID leaf 7.
bool has_amx(const Registers& extended, std::uint64_t states) {
  constexpr std::uint32_t kVbmi = 1u << 1;                          // ecx
  constexpr std::uint32_t kTiles = 1u << 22 | 1u << 24 | 1u << 25;  // edx: BF16, TILE, INT8
  constexpr std::uint32_t kAvx512Bf16 = 1u << 5;                    // eax of subleaf 1
  constexpr std::uint64_t kTileStates = 0x60000;                    // configuration and data
  return has_bits(extended.ecx, kVbmi) && has_bits(extended.edx, kTiles) &&
         has_bits(cpuid(7, 1).eax, kAvx512Bf16) && has_bits(states, kTileStates) && tiles_granted();
}

// Intel SDM volume 1, 14.3 and 15.2 to 15.4: the instructions, and the state behind them.
Isa highest_isa() {
  constexpr std::uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr std::uint32_t kAvx2 = 1u << 5, kBmi2 = 1u << 8;
  constexpr std::uint32_t kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  constexpr std::uint32_t kVnni = 1u << 11;
  constexpr std::uint64_t kYmmState = 0x06;  // xmm and upper halves of ymm
  constexpr std::uint64_t kZmmState = 0xe6;  // and masks, upper halves of zmm, zmm16 to 31
  const Registers basic = cpuid(1);
  const Registers extended = cpuid(7);
  if (!has_bits(basic.ecx, kOsxsave | kAvx | kFma | kF16c)) return Isa::kScalar;
  const std::uint64_t states = saved_states();
  if (!has_bits(states, kYmmState) || !has_bits(extended.ebx, kAvx2 | kBmi2)) return Isa::kScalar;
  const bool avx512 = has_bits(states, kZmmState) && has_bits(extended.ebx, kF | kDq | kBw | kVl) &&
                      has_bits(extended.ecx, kVnni);
  if (!avx512) return Isa::kAvx2;
  return has_amx(extended, states) ? Isa::kAmx : Isa::kAvx512;
}

std::string cpuid_brand() {
  constexpr std::uint32_t kFirstLeaf = 0x80000002u;
  char brand[49] = {};
  for (std::uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(kFirstLeaf + i);
    std::memcpy(brand + 16 * i, &r, 16);
  }
  return brand;
}

#else

Isa highest_isa() {
  return Isa::kScalar;
}

std::string cpuid_brand() {
  return "";
}

#endif

std::string trimmed(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
}

}  // namespace

bool tiles_granted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

Isa isa_from_name(const std::string& name) {
  for (const Isa isa : kAllIsas) {
    if (name != isa_name(isa)) continue;
    GPTOSS_REQUIRE(DeviceError, isa <= highest_isa(), "[isa_from_name] expected at most ",
                   isa_name(highest_isa()), ", which this machine offers, got ", name,
                   "; choose a lower one or unset GPT_OSS_NATIVE_ISA");
    return isa;
  }
  throw InvalidArgument(cat("[isa_from_name] expected scalar, avx2, avx512 or amx, got \"", name,
                            "\"; check isa and GPT_OSS_NATIVE_ISA"));
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAllIsas) {
    if (isa <= highest_isa()) isas.push_back(isa);
  }
  return isas;
}

Isa default_isa() {
  const char* name = std::getenv("GPT_OSS_NATIVE_ISA");
  return name != nullptr && *name != '\0' ? isa_from_name(name) : highest_isa();
}

std::string cpu_model_name() {
  const std::string brand = trimmed(cpuid_brand());
  if (!brand.empty()) return brand;
  std::string found = "unknown processor";
  if (std::FILE* info = std::fopen("/proc/cpuinfo", "re")) {  // architectures without CPUID
    for (char text[512]; std::fgets(text, sizeof(text), info) != nullptr;) {
      const std::string line = text;
      const std::size_t colon = line.find(':');
      if (colon == std::string::npos) continue;
      const std::string key = trimmed(line.substr(0, colon));
      if (key != "model name" && key != "Model") continue;
      found = trimmed(line.substr(colon + 1));
      break;
    }
    std::fclose(info);
  }
  return found;
}

}  // namespace gptoss
