// Attention over the paged cache, and what stands around it: the embedding, and the rotary
// positions and the cache write of the tensor-core regime. Pages: step.h. Rows whose position is
// negative (a graph's bucket may be larger than the batch) are neither read nor written.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/device.h"
#include "cuda/step.h"

namespace gptoss::cuda {

// When a kernel may start. Every kernel here waits (griddepcontrol.wait) before it reads what a
// kernel of the same step wrote; kProgrammatic lets it begin its prologue before that.
enum class Dependence { kFull, kProgrammatic };

struct AttentionArgs {
  StepView step;
  const __nv_bfloat16* q;      // [num_rows][num_heads * 64], rotated
  const __nv_bfloat16* sinks;  // [num_heads]
  __nv_bfloat16* out;          // [num_rows][num_heads * 64]
  KvGroup group;
  std::int64_t layer_offset;  // bytes from a page's first to those of the layer's keys
  std::int32_t window;        // keys that a row sees, its own included; 0: all
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  void* workspace;  // attention_workspace_bytes, all zero before the first use; kernels leave it
                    // so that the next one may use it
};

// For attention_decode with at most kSmallRows rows, and for any attention_prefill.
std::size_t attention_workspace_bytes(std::int64_t num_heads);

// One row at a time, each kv head's keys split over blocks: the small regime. A row's result
// depends on its own position and nothing else. step.num_rows and step.max_position may be those of
// a bucket: no position of the batch is larger. Keys of positions before the segment's first are
// read before the dependency is waited for, q and the others after.
void attention_decode(const AttentionArgs& args, const DeviceInfo& device, Dependence dependence,
                      cudaStream_t stream);

// Any ragged batch: the large regime. Segments of one row go through the kernels of
// attention_decode, others in tiles of query rows. A value that is not a number also reaches rows
// of its own segment up to a tile (192 queries of a kv head) before it, never another segment's.
void attention_prefill(const AttentionArgs& args, const DeviceInfo& device, cudaStream_t stream);

// The large regime's step between the qkv product (bias added) and attention: rotates q and k,
// writes q, and k and v to the pages. Channels of qkv stand in RowOrder::kRope (layout.h), those of
// v too; q_out and the pages are in natural order. In: float or __nv_bfloat16.
template <typename In>
struct KvWriteArgs {
  StepView step;
  const In* qkv;            // [num_rows][(num_heads + 2 * num_kv_heads) * 64]
  const float* rope_table;  // device_model.h
  __nv_bfloat16* q_out;     // [num_rows][num_heads * 64]
  KvGroup group;
  std::int64_t layer_offset;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
};
template <typename In>
void kv_write_rope(const KvWriteArgs<In>& args, cudaStream_t stream);

// residual = embedding[token], float32. With norm_scale, also what the first product of the small
// regime reads: xs = bf16(residual * norm_scale), and the sum of residual^2 of every 16 channels.
struct EmbedArgs {
  const std::int32_t* tokens;      // [num_rows]; a negative one is passed over
  const __nv_bfloat16* embedding;  // [vocab][hidden]
  std::int32_t num_rows;
  std::int32_t hidden;              // a multiple of 8
  float* residual;                  // [num_rows][hidden]
  const __nv_bfloat16* norm_scale;  // [hidden] or null
  __nv_bfloat16* xs;                // [num_rows][hidden]
  float* square_sums;               // [num_rows][tiles_along(hidden, 16)]
};
void embed(const EmbedArgs& args, Dependence dependence, cudaStream_t stream);

}  // namespace gptoss::cuda
