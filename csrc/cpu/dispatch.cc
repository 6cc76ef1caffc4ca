// Which kernel table serves an instruction set.
#include "base/error.h"
#include "cpu/kernel_table.h"

namespace gptoss::cpu {

const KernelTable& kernels_for(Isa isa) {
  bool available = false;
  for (const Isa offered : available_isas()) available = available || offered == isa;
  GPTOSS_REQUIRE(DeviceError, available,
                 "[kernels_for] expected an instruction set of this machine,", " got ",
                 isa_name(isa), "; use one of gpt-oss-native info");
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return amx_kernels();
  if (isa == Isa::kAvx512) return avx512_kernels();
  if (isa == Isa::kAvx2) return avx2_kernels();
#endif
  return scalar_kernels();
}

}  // namespace gptoss::cpu
