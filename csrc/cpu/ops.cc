// The op table of the CPU: each kernel, shared among the threads of a pool.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "backend/op_table.h"
#include "base/thread_pool.h"
#include "cpu/kernel_table.h"
#include "cpu/workspace.h"

namespace gptoss::cpu {
namespace {

constexpr std::int64_t kSweepGrain = 64 << 10;  // words
constexpr std::int64_t kNaturalOfKernelOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

class CpuOps final : public OpTable {
 public:
  CpuOps(const KernelTable& kernels, int num_threads)
      : kernels_(kernels), pool_(num_threads > 0 ? num_threads : default_num_threads()) {}

  void embed(const EmbedArgs& args) override {
    timed_share(args.out.rows, 1, [&](Range tokens, std::byte*) { kernels_.embed(args, tokens); });
  }
  void rms_norm(const RmsNormArgs& args) override {
    timed_share(args.x.rows, 1, [&](Range tokens, std::byte*) { kernels_.rms_norm(args, tokens); });
  }
  void linear_bf16(const LinearBf16Args& args) override {
    size_scratch(args.x.cols);
    timed_share(args.weight.rows, kernels_.row_tile,
                [&](Range rows, std::byte* scratch) { kernels_.linear_bf16(args, rows, scratch); });
  }
  void linear_bf16_float32(const LinearBf16Args& args) override {
    size_scratch(args.x.cols);
    timed_share(args.weight.rows, kernels_.row_tile, [&](Range rows, std::byte* scratch) {
      kernels_.linear_bf16_float32(args, rows, scratch);
    });
  }
  void linear_int8(const LinearBf16Args& args) override {
    size_scratch(args.x.cols);
    const std::int64_t num_rows = args.weight.rows;
    const std::size_t bytes = kernels_.packed_int8_bytes(num_rows, args.weight.cols);
    const AlignedBuffer packed(bytes, "packed weights");
    share(num_rows, kernels_.row_tile, [&](Range rows, std::byte*) {
      kernels_.pack_int8(args.weight, rows, packed.as<std::uint8_t>());
    });
    ActivationBuffer x;
    const Activations forms = quantised(args.x, kernels_.int8_forms, x);
    const LinearInt8Args int8_args{
        forms.int15, forms.bf16,    {packed.as<std::uint8_t>(), num_rows, args.weight.cols},
        args.bias,   args.epilogue, args.out};
    timed_share(num_rows, kernels_.row_tile, [&](Range rows, std::byte* scratch) {
      kernels_.linear_int8(int8_args, rows, scratch);
    });
  }
  void quantize_int8(const QuantizeInt8OpArgs& args) override {
    ActivationBuffer buffer;
    Int8Activations x;
    timed([&] { x = quantised(args.x, {.int8 = true}, buffer).int8; });
    const std::int64_t count = args.x.rows * args.x.cols;
    for (std::int64_t i = 0; i < count; ++i) {
      args.q[i - i % 8 + kNaturalOfKernelOrder[i % 8]] = x.q[i];
    }
    std::copy_n(x.scales, count / kMxBlock, args.scales);
  }
  void quantize_int15(const QuantizeInt15OpArgs& args) override {
    ActivationBuffer buffer;
    Int15Activations x;
    timed([&] { x = quantised(args.x, {.int15 = true}, buffer).int15; });
    const std::int64_t count = args.x.rows * args.x.cols;
    for (std::int64_t i = 0; i < count; ++i) {
      args.codes[i] = kernels_.int15_code(x.codes + i / kMxBlock * kMxBlock, i % kMxBlock);
    }
    std::copy_n(x.scales, count / kMxBlock, args.scales);
  }
  void linear_mxfp4_int8(const LinearMxfp4OpArgs& args) override {
    ActivationBuffer x;
    linear_mxfp4(kernels_.linear_mxfp4_int8, args, quantised(args.x, kernels_.expert_forms, x));
  }
  void linear_mxfp4_float32(const LinearMxfp4OpArgs& args) override {
    linear_mxfp4(kernels_.linear_mxfp4_float32, args, {});
  }
  void swiglu(const SwigluArgs& args) override {
    timed_share(args.out.rows, 1,
                [&](Range rows, std::byte*) { kernels_.swiglu(args, rows, {0, args.out.cols}); });
  }
  void rope(const RopeArgs& args) override {
    timed_share(args.x.rows, 1, [&](Range tokens, std::byte*) { kernels_.rope(args, tokens); });
  }
  void attention(const AttentionOpArgs& args) override;
  void router_topk(const RouterTopkArgs& args) override {
    timed_share(args.logits.rows, 1,
                [&](Range tokens, std::byte*) { kernels_.router_topk(args, tokens); });
  }
  void moe_combine(const MoeCombineArgs& args) override {
    timed_share(args.out.rows, 1, [&](Range tokens, std::byte*) {
      kernels_.moe_combine(args, tokens, {0, args.out.cols});
    });
  }

 private:
  void size_scratch(std::int64_t cols) {
    scratch_.resize(static_cast<std::size_t>(pool_.num_threads()));
    for (AlignedBuffer& scratch : scratch_) {
      scratch.ensure(kernels_.scratch_bytes(cols), "kernel scratch");
    }
  }

  template <typename Body>
  void share(std::int64_t total, std::int64_t grain, Body&& body) {
    if (scratch_.empty()) size_scratch(kHeadDim);
    if (total <= grain) return body(Range{0, total}, scratch_[0].as<std::byte>());
    pool_.run([&](Worker& worker) {
      const Range mine = worker.share(total, grain);
      if (mine.size() > 0) {
        body(mine, scratch_[static_cast<std::size_t>(worker.index())].as<std::byte>());
      }
    });
  }

  // The kernels of a call, as `timing_` says.
  template <typename Kernels>
  void timed(Kernels&& kernels) {
    kernel_seconds_.clear();
    if (timing_.repeats == 0) return kernels();
    for (int repeat = 0; repeat < timing_.repeats; ++repeat) {
      evict();
      const auto start = std::chrono::steady_clock::now();
      kernels();
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      kernel_seconds_.push_back(elapsed.count());
    }
  }
  template <typename Body>
  void timed_share(std::int64_t total, std::int64_t grain, Body&& body) {
    timed([&] { share(total, grain, body); });
  }

  // Every thread reads its part of a buffer: what the caches held gives way to it.
  void evict() {
    const auto words = static_cast<std::int64_t>(timing_.evict_bytes / sizeof(std::uint64_t));
    if (words == 0) return;
    if (evicting_.num_bytes() < timing_.evict_bytes) {
      evicting_ = AlignedBuffer(timing_.evict_bytes, "a sweep of the caches");
      std::memset(evicting_.as<std::byte>(), 1,
                  timing_.evict_bytes);  // real pages, not the zero one
    }
    share(words, kSweepGrain, [&](Range mine, std::byte*) {
      const std::uint64_t* data = evicting_.as<const std::uint64_t>();
      const std::uint64_t sum =
          std::accumulate(data + mine.begin, data + mine.end, std::uint64_t{0});
      swept_.fetch_add(sum, std::memory_order_relaxed);
    });
  }

  // x in these forms, in the memory of `buffer`.
  Activations quantised(MatrixView<const float> x, ActivationForms forms,
                        ActivationBuffer& buffer) {
    buffer.ensure(x.rows, x.cols, forms);
    Activations out = buffer.activations();
    out.values = x;
    const Range blocks{0, x.cols / kMxBlock};
    share(x.rows, 1, [&](Range rows, std::byte*) {
      if (forms.int8) kernels_.quantize_int8({x, out.int8}, rows, blocks);
      if (forms.int15) kernels_.quantize_int15({x, out.int15}, rows, blocks);
      if (forms.bf16) kernels_.quantize_bf16({x, out.bf16}, rows, blocks);
    });
    return out;
  }

  using LinearMxfp4 = void (*)(const LinearMxfp4Args&, Range, std::byte*);
  void linear_mxfp4(LinearMxfp4 kernel, const LinearMxfp4OpArgs& args, const Activations& x) {
    size_scratch(args.x.cols);
    const LinearMxfp4Args kernel_args{x.int8,        x.bf16,        args.x,
                                      args.weight,   args.bias,     args.x_rows,
                                      args.out_rows, args.num_rows, args.out};
    timed_share(args.weight.rows, kernels_.row_tile,
                [&](Range rows, std::byte* scratch) { kernel(kernel_args, rows, scratch); });
  }

  const KernelTable& kernels_;
  ThreadPool pool_;
  std::vector<AlignedBuffer> scratch_;
  AlignedBuffer evicting_;
  std::atomic<std::uint64_t> swept_{0};  // keeps the sweep's sums alive
};

void CpuOps::attention(const AttentionOpArgs& args) {
  size_scratch(kHeadDim);
  const std::int64_t history = args.k.rows;
  const std::int64_t num_tokens = args.q.rows;
  ModelConfig one_layer;
  one_layer.num_layers = 1;
  one_layer.num_kv_heads = args.num_kv_heads;
  one_layer.layer_is_sliding = {false};
  const KvPlan plan(one_layer, args.dtype);
  std::vector<AlignedBuffer> memory;
  std::vector<std::byte*> pages;
  for (std::int64_t page = 0; page * kPageTokens < history; ++page) {
    memory.emplace_back(plan.layer_bytes(), "a page of keys and values");
    pages.push_back(memory.back().as<std::byte>());
    std::fill_n(pages.back(), plan.layer_bytes(), std::byte{0xff});  // NaN: unwritten slots show
  }
  kernels_.kv_write({args.k, args.v, 0, pages.data(), 0, args.num_kv_heads, args.dtype},
                    {0, history});
  const AttentionArgs kernel_args{.q = args.q,
                                  .position = history - num_tokens,
                                  .pages = pages.data(),
                                  .first_page = 0,
                                  .window = args.window,
                                  .sinks = args.sinks,
                                  .num_heads = args.num_heads,
                                  .num_kv_heads = args.num_kv_heads,
                                  .dtype = args.dtype,
                                  .out = args.out};
  const std::int64_t num_splits = (history + kSplitTokens - 1) / kSplitTokens;
  const std::int64_t queries = args.num_heads / args.num_kv_heads * num_tokens;
  std::vector<AttentionPartial> all_partials(
      static_cast<std::size_t>(args.num_kv_heads * queries * num_splits));
  timed_share(args.num_kv_heads, 1, [&](Range heads, std::byte* scratch) {
    for (std::int64_t head = heads.begin; head < heads.end; ++head) {
      AttentionPartial* partials = all_partials.data() + head * queries * num_splits;
      if (args.way == AttentionWay::kWhole) {
        kernels_.attention(kernel_args, head, {0, num_tokens}, scratch);
        continue;
      }
      for (std::int64_t split = 0; split < num_splits; ++split) {
        kernels_.attention_split(kernel_args, head, {0, num_tokens}, split,
                                 partials + split * queries, scratch);
      }
      kernels_.attention_merge(kernel_args, head, {0, num_tokens}, partials, num_splits, queries);
    }
  });
}

}  // namespace
}  // namespace gptoss::cpu

namespace gptoss {

std::unique_ptr<OpTable> make_cpu_ops(std::optional<Isa> isa, int num_threads) {
  return std::make_unique<cpu::CpuOps>(cpu::kernels_for(isa.value_or(default_isa())), num_threads);
}

}  // namespace gptoss
