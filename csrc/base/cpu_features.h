// Which instruction sets this CPU and operating system offer, and which one is used.
#pragma once

#include <string>
#include <vector>

namespace gptoss {

// Portable code; AVX2 with FMA and F16C; AVX-512 F, BW, DQ, VL with VNNI; that with VBMI, BF16 and
// the tiles of AMX for bf16 and bytes, which the operating system grants a process that asks.
enum class Isa { kScalar, kAvx2, kAvx512, kAmx };

const char* isa_name(Isa isa);
// Throws InvalidArgument for an unknown name, DeviceError for one this machine lacks.
Isa isa_from_name(const std::string& name);
// Lowest first; kScalar is always there.
std::vector<Isa> available_isas();
// The highest available, or GPT_OSS_NATIVE_ISA.
Isa default_isa();
// Asks Linux for the state of AMX's tiles, once, and tells whether it gave it. It hands it out by
// process since it enlarges the frames of signals; refused where a thread's alternate stack is too
// small for them, and by old kernels. Threads and children of os.fork inherit it
// (Linux, Documentation/arch/x86/xstate.rst). The processor must have tiles.
bool tiles_granted();
// Marketing name of the processor, for reports.
std::string cpu_model_name();

}  // namespace gptoss
