// The kernels compiled for one instruction set: the lanes of simd/, then every op over them.
//
// Everything is in an anonymous namespace but the table: this file must define no symbol that the
// linker could take for code compiled for any processor (checked by a test).
#define GPTOSS_ISA amx

// clang-format off: lanes, ops over them, the table of the ops.
#include "cpu/simd/avx512.h"
#include "cpu/simd/int8_avx512.h"

#include "cpu/kernels/attention-inl.h"
#include "cpu/kernels/embed-inl.h"
#include "cpu/kernels/kv_write-inl.h"
#include "cpu/kernels/linear_bf16-inl.h"
#include "cpu/kernels/linear_int8-inl.h"
#include "cpu/kernels/linear_mxfp4-inl.h"
#include "cpu/kernels/moe_combine-inl.h"
#include "cpu/kernels/pack_int8-inl.h"
#include "cpu/kernels/quantize_int15-inl.h"
#include "cpu/kernels/quantize_int8-inl.h"
#include "cpu/kernels/rms_norm-inl.h"
#include "cpu/kernels/rope-inl.h"
#include "cpu/kernels/router_topk-inl.h"
#include "cpu/kernels/swiglu-inl.h"

#include "cpu/kernels/table-inl.h"
// clang-format on

namespace gptoss::cpu {

const KernelTable& amx_kernels() {
  static constexpr KernelTable table = amx::make_table(Isa::kAmx);
  return table;
}

}  // namespace gptoss::cpu
