#include "cpu/workspace.h"

#include <algorithm>

namespace gptoss::cpu {
namespace {

constexpr std::int64_t kAlignFloats = 16;

std::int64_t padded(std::int64_t count) {
  return (count + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
}

}  // namespace

void ActivationBuffer::ensure(std::int64_t rows, std::int64_t cols, ActivationForms forms) {
  const std::int64_t values = padded(rows * cols);
  const std::int64_t blocks = padded(rows * (cols / kMxBlock));
  const std::int64_t int8 = forms.int8 ? values + blocks * 8 : 0;  // bytes: codes, scales, sums
  const std::int64_t int15 = forms.int15 ? values * 2 + blocks * 8 : 0;
  const std::int64_t bf16s = forms.bf16 ? values * 6 + blocks * 8 : 0;
  memory_.ensure(static_cast<std::size_t>(values * 4 + int8 + int15 + bf16s), "activations");
  std::byte* next = memory_.as<std::byte>();
  const auto take = [&]<typename T>(T*& part, std::int64_t count) {
    part = reinterpret_cast<T*>(next);
    next += count * static_cast<std::int64_t>(sizeof(T));
  };
  float* floats = nullptr;
  take(floats, values);
  values_ = matrix(floats, rows, cols);
  int8_ = {.rows = rows, .cols = cols};
  if (forms.int8) {
    take(int8_.q, values);
    take(int8_.scales, blocks);
    take(int8_.sums, blocks);
  }
  int15_ = {.rows = rows, .cols = cols};
  if (forms.int15) {
    take(int15_.codes, values);
    take(int15_.scales, blocks);
    take(int15_.sums, blocks);
  }
  bf16_ = {.rows = rows, .cols = cols};
  if (forms.bf16) {
    take(bf16_.values, values);
    take(bf16_.codes, values);
    take(bf16_.bytes, values * 2);
    take(bf16_.scales, blocks);
    take(bf16_.sums, blocks);
  }
}

void Workspace::ensure(const ModelConfig& c, const KernelTable& kernels,
                       ActivationForms dense_forms, ActivationForms expert_forms,
                       std::int64_t expert_unit_rows, int num_threads, std::int64_t num_tokens,
                       std::int64_t num_logit_rows) {
  tokens.resize(static_cast<std::size_t>(num_tokens));
  const std::int64_t num_slots = num_tokens * c.experts_per_token;
  struct Part {
    MatrixView<float>* view;
    std::int64_t rows;
    std::int64_t cols;
  };
  const Part parts[] = {
      {&residual, num_tokens, c.hidden_size},  {&q, num_tokens, c.q_size()},
      {&k, num_tokens, c.kv_size()},           {&v, num_tokens, c.kv_size()},
      {&cos_sin, num_tokens, c.head_dim},      {&router_logits, num_tokens, c.num_experts},
      {&expert_out, num_slots, c.hidden_size},
  };
  std::int64_t total = 0;
  for (const Part& part : parts) total += padded(part.rows * part.cols);
  floats.ensure(static_cast<std::size_t>(total) * sizeof(float), "the workspace of a step");
  float* next = floats.as<float>();
  for (const Part& part : parts) {
    *part.view = matrix(next, part.rows, part.cols);
    next += padded(part.rows * part.cols);
  }
  for (std::int64_t i = static_cast<std::int64_t>(row_numbers.size()); i < num_tokens; ++i) {
    row_numbers.push_back(static_cast<std::int32_t>(i));
  }
  const ActivationForms forms{.int8 = dense_forms.int8 || expert_forms.int8,
                              .int15 = dense_forms.int15 || expert_forms.int15,
                              .bf16 = dense_forms.bf16 || expert_forms.bf16};
  norm.ensure(num_tokens, c.hidden_size, forms);
  attention.ensure(num_tokens, c.q_size(), dense_forms);
  swiglu.ensure(num_slots, c.intermediate_size, expert_forms);
  final_norm.ensure(num_logit_rows, c.hidden_size, dense_forms);

  const auto size_routing = [&](Routing& r, std::int64_t count) {
    r.expert_ids.resize(static_cast<std::size_t>(count * c.experts_per_token));
    r.weights.resize(static_cast<std::size_t>(count * c.experts_per_token));
    r.plan.reserve(count * c.experts_per_token, c.num_experts);
  };
  size_routing(routing, num_tokens);
  threads.resize(static_cast<std::size_t>(num_threads));
  const std::int64_t widest = std::max({c.hidden_size, c.q_size(), c.intermediate_size});
  for (ThreadSpace& space : threads) {
    space.norm.ensure(kRedundantTokens, c.hidden_size, forms);
    size_routing(space.routing, kRedundantTokens);
    space.kernel_scratch.ensure(kernels.scratch_bytes(widest), "kernel scratch");
    const std::int64_t gate_up =
        std::max(num_tokens * expert_unit_rows, kRedundantTokens * 2 * c.intermediate_size);
    space.gate_up.ensure(static_cast<std::size_t>(gate_up) * sizeof(float), "expert activations");
  }
}

void Workspace::keep_rows(std::int64_t num_tokens) {
  const std::int64_t per_token = residual.rows > 0 ? expert_out.rows / residual.rows : 0;
  for (MatrixView<float>* view : {&residual, &q, &k, &v, &cos_sin, &router_logits}) {
    view->rows = num_tokens;
  }
  expert_out.rows = num_tokens * per_token;
  norm.keep_rows(num_tokens);
  attention.keep_rows(num_tokens);
  swiglu.keep_rows(num_tokens * per_token);
}

std::size_t Workspace::num_bytes() const {
  std::size_t total = floats.num_bytes() + norm.num_bytes() + attention.num_bytes() +
                      swiglu.num_bytes() + final_norm.num_bytes();
  for (const ThreadSpace& space : threads) {
    total += space.norm.num_bytes() + space.kernel_scratch.num_bytes() + space.gate_up.num_bytes();
  }
  return total;
}

}  // namespace gptoss::cpu
