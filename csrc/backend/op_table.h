// Every op of a device, whole, on arrays: what tests hold against the float64 reference and
// microbenchmarks time. The layer loops call the same kernels piecewise.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/batch.h"
#include "backend/op_args.h"
#include "base/cpu_features.h"
#include "base/error.h"
#include "model/kv_plan.h"
#include "model/mxfp4.h"

namespace gptoss {

// out[out_rows[i]] = x[x_rows[i]] * weight^T + bias
struct LinearMxfp4OpArgs {
  MatrixView<const float> x;     // [num_tokens][cols]
  MxMatrix weight;               // [rows][cols], rows a multiple of 32
  const bf16* bias;              // [rows]
  const std::int32_t* x_rows;    // [num_rows]
  const std::int32_t* out_rows;  // [num_rows]
  std::int64_t num_rows;
  MatrixView<float> out;  // [...][rows]
};

// How a device may go about attention; every way gives the same bits.
enum class AttentionWay { kWhole, kSplit };

// Queries at positions history - num_tokens ... history - 1 over keys 0 ... history - 1.
struct AttentionOpArgs {
  MatrixView<const float> q;  // [num_tokens][num_heads * 64], rotated
  MatrixView<const float> k;  // [history][num_kv_heads * 64], rotated
  MatrixView<const float> v;  // [history][num_kv_heads * 64]
  std::int64_t window;        // 0: full causal
  const bf16* sinks;          // [num_heads]
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  KvDtype dtype;
  AttentionWay way;
  MatrixView<float> out;  // [num_tokens][num_heads * 64]
};

struct QuantizeInt8OpArgs {
  MatrixView<const float> x;  // [rows][cols], cols a multiple of 32
  std::int8_t* q;             // [rows][cols], natural order
  float* scales;              // [rows][cols / 32]
};

struct QuantizeInt15OpArgs {
  MatrixView<const float> x;  // [rows][cols], cols a multiple of 32
  std::int16_t* codes;        // [rows][cols], natural order
  float* scales;              // [rows][cols / 32]
};

// A token of each row, as `Batch` has them drawn.
struct DrawTokensOpArgs {
  MatrixView<const float> logits;        // [rows][vocab]
  std::span<const DrawOptions> options;  // one a row
  std::int32_t* tokens;                  // [rows]
};

// How the kernels of a call are timed: apart from its preparation (packing weights, filling pages,
// copying to a device), `repeats` times, each after sweeping `evict_bytes` through the caches. An
// op that works in place is then applied so many times.
struct KernelTiming {
  int repeats = 0;  // 0: once, untimed
  std::size_t evict_bytes = 0;
};

class OpTable {
 public:
  virtual ~OpTable() = default;

  // For every call from now on.
  void time_kernels(const KernelTiming& timing) { timing_ = timing; }
  // Of the last call, one a repeat; empty from a table that does not time.
  const std::vector<double>& kernel_seconds() const { return kernel_seconds_; }

  virtual void embed(const EmbedArgs& args) = 0;
  virtual void rms_norm(const RmsNormArgs& args) = 0;
  // With activations as the device likes them, float32 or bf16; and with float32 ones, as routers
  // and precision="float32" want them.
  virtual void linear_bf16(const LinearBf16Args& args) = 0;
  virtual void linear_bf16_float32(const LinearBf16Args&) {
    throw InvalidArgument(
        "[linear] expected a device that keeps activations in float32, such as 'cpu', got "
        "precision='float32'; use device='cpu'");
  }
  // The same product with weights repacked to int8 first, as dense="int8" does at load, and x
  // quantised to 15 bits.
  virtual void linear_int8(const LinearBf16Args& args) = 0;
  virtual void quantize_int8(const QuantizeInt8OpArgs& args) = 0;
  virtual void quantize_int15(const QuantizeInt15OpArgs& args) = 0;
  // With int8 activations, and with float32 ones (precision="float32").
  virtual void linear_mxfp4_int8(const LinearMxfp4OpArgs& args) = 0;
  virtual void linear_mxfp4_float32(const LinearMxfp4OpArgs& args) = 0;
  virtual void swiglu(const SwigluArgs& args) = 0;
  virtual void rope(const RopeArgs& args) = 0;
  virtual void attention(const AttentionOpArgs& args) = 0;
  virtual void router_topk(const RouterTopkArgs& args) = 0;
  virtual void moe_combine(const MoeCombineArgs& args) = 0;
  // Of devices that draw. Throws what the sampler would for the first row without a token.
  virtual void draw_tokens(const DrawTokensOpArgs&) {
    throw InvalidArgument(
        "[draw_tokens] expected a device that draws, such as 'cuda'; the CPU's tokens are the "
        "sampler's");
  }

 protected:
  KernelTiming timing_;
  std::vector<double> kernel_seconds_;
};

// num_threads 0: default_num_threads().
std::unique_ptr<OpTable> make_cpu_ops(std::optional<Isa> isa, int num_threads);
// Arrays may lie in host or device memory. Throws DeviceError when there is no usable device.
std::unique_ptr<OpTable> make_cuda_ops(int device_index);

}  // namespace gptoss
