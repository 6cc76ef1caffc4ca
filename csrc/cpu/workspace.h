// Buffers of one forward step, grown to the largest batch seen and reused.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "cpu/dense_weights.h"
#include "cpu/kernel_table.h"
#include "model/model_config.h"
#include "model/moe_plan.h"

namespace gptoss::cpu {

// Up to this many tokens every thread normalises, quantises and routes all tokens for itself:
// repeating that is cheaper than a barrier.
constexpr std::int64_t kRedundantTokens = 4;

// Rows in float32 and in some of the forms.
class ActivationBuffer {
 public:
  void ensure(std::int64_t rows, std::int64_t cols, ActivationForms forms);
  MatrixView<float> values() const { return values_; }
  Activations activations() const { return first_rows(values_.rows); }
  Activations first_rows(std::int64_t rows) const {
    Activations result{as_const(values_), int8_, int15_, bf16_};
    result.values.rows = rows;
    result.int8.rows = rows;
    result.int15.rows = rows;
    result.bf16.rows = rows;
    return result;
  }
  void keep_rows(std::int64_t count) {  // the first ones
    values_.rows = int8_.rows = int15_.rows = bf16_.rows = count;
  }
  std::size_t num_bytes() const { return memory_.num_bytes(); }

  static MatrixView<const float> as_const(MatrixView<float> view) {
    return {view.data, view.rows, view.cols, view.stride};
  }

 private:
  AlignedBuffer memory_;
  MatrixView<float> values_;
  Int8Activations int8_{};    // null where not a form of this buffer
  Int15Activations int15_{};  // likewise
  Bf16Activations bf16_{};    // likewise
};

// Which experts each token goes to, and how much.
struct Routing {
  std::vector<std::int32_t> expert_ids;  // [num_tokens][experts_per_token]
  std::vector<float> weights;            // [num_tokens][experts_per_token]
  MoePlan plan;
};

// One thread's own.
struct ThreadSpace {
  ActivationBuffer norm;  // [kRedundantTokens][hidden]
  Routing routing;
  AlignedBuffer kernel_scratch;
  AlignedBuffer gate_up;  // [tokens of an expert][rows taken at a time]
};

struct Workspace {
  std::vector<std::int32_t> tokens;  // [num_tokens]
  AlignedBuffer floats;              // memory of the float views below
  MatrixView<float> residual;        // [num_tokens][hidden]
  MatrixView<float> q;               // [num_tokens][num_heads * 64]
  MatrixView<float> k;               // [num_tokens][num_kv_heads * 64]
  MatrixView<float> v;               // [num_tokens][num_kv_heads * 64]
  MatrixView<float> cos_sin;         // [num_tokens][64]
  MatrixView<float> router_logits;   // [num_tokens][num_experts]
  MatrixView<float> expert_out;      // [num_tokens * experts_per_token][hidden]
  ActivationBuffer norm;             // [num_tokens][hidden]
  ActivationBuffer attention;        // [num_tokens][num_heads * 64]
  ActivationBuffer swiglu;           // [num_tokens * experts_per_token][intermediate]
  ActivationBuffer final_norm;       // [num_logit_rows][hidden]
  Routing routing;
  std::vector<std::int32_t> row_numbers;  // 0, 1, 2, ...
  std::vector<ThreadSpace> threads;

  // Grows to `num_tokens`; throws OutOfMemory and stays usable for smaller batches. The forms are
  // those that products of this model want.
  void ensure(const ModelConfig& config, const KernelTable& kernels, ActivationForms dense_forms,
              ActivationForms expert_forms, std::int64_t expert_unit_rows, int num_threads,
              std::int64_t num_tokens, std::int64_t num_logit_rows);
  // Only the first tokens from here on.
  void keep_rows(std::int64_t num_tokens);
  std::size_t num_bytes() const;
};

// What shares of the gate/up matrix are multiples of: pairs for whole blocks of 32 outputs.
constexpr std::int64_t kGateUpUnit = 2 * kMxBlock;
// Rows a thread takes at a time when tokens are many; an expert's whole share when they are few.
constexpr std::int64_t kExpertUnitRowsMin = 4 * kGateUpUnit;

}  // namespace gptoss::cpu
