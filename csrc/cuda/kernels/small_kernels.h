// The kernels of the small regime (step.h: at most kSmallRows rows) but attention's, and the
// buffers between them. Every kernel waits for the one before it (griddepcontrol.wait) before it
// reads what a kernel wrote; before that it only fetches weights.
//
// The norm's factor is applied after a product: what feeds one is xs = bf16(residual * scale), and
// the sums of squares of every 16 channels give 1 / rms where the product's rows are finished.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/device.h"
#include "cuda/device_model.h"
#include "cuda/kernels/attention.h"
#include "cuda/step.h"

namespace gptoss::cuda {

// The router's logits before norm and bias, in 64-bit fixed point so that the order in which blocks
// add does not matter. A partial sum that is not finite, or too large, sets the row's flag, which
// stands for NaN.
struct RouterSums {
  unsigned long long* sums = nullptr;  // [kSmallRows][num_experts], two's complement
  unsigned* not_finite = nullptr;      // [kSmallRows]
};

constexpr std::size_t kRoutingBytes = 8192;

struct SmallBuffers {
  float* residual = nullptr;    // [kSmallRows][hidden]
  __nv_bfloat16* xs = nullptr;  // [kSmallRows][hidden], for q, k, v and the logits
  // What the MXFP4 products read: in the order of fragments (fragment_index), times
  // 2^kMxActivationExponent, rows of whole chunks of 64 with 0 past the end.
  __nv_bfloat16* expert_xs = nullptr;  // [kSmallRows][hidden up to a multiple of 64]
  float* attn_squares = nullptr;       // [kSmallRows][hidden / 16], of what attention reads
  float* mlp_squares = nullptr;        // [kSmallRows][hidden / 16], of what the experts read
  __nv_bfloat16* q = nullptr;          // [kSmallRows][num_heads * 64], rotated
  __nv_bfloat16* attention = nullptr;  // [kSmallRows][num_heads * 64]
  __nv_bfloat16* h = nullptr;          // [kSmallRows * experts_per_token][intermediate likewise]
  float* expert_sums = nullptr;        // [kSmallRows * experts_per_token][hidden], of down
  void* routing = nullptr;             // kRoutingBytes: the layer's, of gate_up for down
  RouterSums router;
};

// q, k, v = xs W^T / rms + bias; q and k rotated; q to a buffer, k and v to the cache. Clears the
// router's sums for the layer.
struct QkvSmallArgs {
  StepView step;
  DenseTiles weight;
  const __nv_bfloat16* bias;
  float eps;
  const float* rope_table;
  KvGroup group;
  std::int64_t layer_offset;  // bytes, attention.h
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t num_experts;
  SmallBuffers buffers;
};
void qkv_small(const QkvSmallArgs& args, const DeviceInfo& device, Dependence dependence,
               cudaStream_t stream);

// residual += attention W^T + bias, and for the experts: xs and sums of squares of the new
// residual, and its products with the router's matrix.
struct OutSmallArgs {
  std::int32_t num_rows;
  DenseTiles weight;
  const __nv_bfloat16* bias;
  const __nv_bfloat16* next_norm;          // [hidden]
  const __nv_bfloat16* router_by_channel;  // [hidden / 16][num_experts][16]
  std::int32_t num_experts;
  SmallBuffers buffers;
};
void out_small(const OutSmallArgs& args, const DeviceInfo& device, Dependence dependence,
               cudaStream_t stream);

// How gate_up finds each row's experts, each block for itself.
struct RoutingArgs {
  const std::int32_t* positions;  // [num_rows]; rows with a negative one have no experts
  const std::int32_t* forced;     // [num_rows][experts_per_token] or null
  const __nv_bfloat16* bias;      // [num_experts]
  const float* squares;           // mlp_squares
  RouterSums sums;
  float eps;
  std::int32_t hidden;
  std::int32_t num_rows;
  std::int32_t num_experts;
  std::int32_t experts_per_token;
};

// h = swiglu(xs W_e^T / rms + bias_e) for every row and each of its experts, in ascending order,
// and the experts' weights.
struct GateUpSmallArgs {
  bool alone;  // the step's only row, of a model that expert_row.h's kernels take
  RoutingArgs routing;
  MxTiles weight;
  const __nv_bfloat16* bias;  // [num_experts][2 * intermediate], in the order of the rows
  float limit;
  float alpha;
  SmallBuffers buffers;
};
void gate_up_small(const GateUpSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                   cudaStream_t stream);

// residual += sum over the row's experts, ascending, of weight * (h W_e^T + bias_e); xs and sums of
// squares of the new residual.
struct DownSmallArgs {
  bool alone;  // likewise
  RoutingArgs routing;
  MxTiles weight;
  const __nv_bfloat16* bias;       // [num_experts][hidden]
  const __nv_bfloat16* next_norm;  // [hidden]
  SmallBuffers buffers;
};
void down_small(const DownSmallArgs& args, const DeviceInfo& device, Dependence dependence,
                cudaStream_t stream);

// logits = xs W^T / rms of some rows.
struct UnembeddingSmallArgs {
  const std::int32_t* logit_rows;  // [num_logit_rows]
  std::int32_t num_logit_rows;
  DenseTiles weight;
  float eps;
  SmallBuffers buffers;
  float* logits;  // [num_logit_rows][vocab]
};
void unembedding_small(const UnembeddingSmallArgs& args, const DeviceInfo& device,
                       Dependence dependence, cudaStream_t stream);

// Throws InvalidArgument when the kernels above cannot run this model on this device, whatever its
// shared memory.
void require_small_kernels(const ModelConfig& config, const DeviceInfo& device);
// Rows that one launch may have: kSmallRows, fewer where the shared memory of the device's blocks
// has no room for the groups that kernels take them in, 0 where it has none for a single row.
std::int32_t small_group_rows(const ModelConfig& config, const DeviceInfo& device);

}  // namespace gptoss::cuda
