// The op table of a CUDA device: the kernels of the steps, one op at a time. Arrays may lie in host
// or device memory; what products take besides (tiles of weights, activations in bf16, pages) is
// made first, apart from what is timed.
#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/op_table.h"
#include "cuda/cuda_backend.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/elementwise.h"
#include "cuda/kernels/linear_bf16.h"
#include "cuda/kernels/linear_mxfp4.h"
#include "cuda/kernels/moe_combine.h"
#include "cuda/kernels/repack.h"
#include "cuda/kernels/rms_norm.h"
#include "cuda/kernels/router_topk.h"
#include "cuda/op_arrays.h"
#include "cuda/tuning.h"

namespace gptoss::cuda {
namespace {

const __nv_bfloat16* as_bf16(const void* data) {
  return static_cast<const __nv_bfloat16*>(data);
}
std::int32_t narrow(std::int64_t value) {
  return static_cast<std::int32_t>(value);
}

// Products read x sixteen columns at a time.
std::int64_t padded(std::int64_t cols) {
  return tiles_along(cols, kTileK) * kTileK;
}

template <typename T>
DeviceBuffer device_array(std::int64_t count) {
  return DeviceBuffer(static_cast<std::size_t>(count) * sizeof(T), "op");
}

class CudaOps final : public OpTable {
 public:
  explicit CudaOps(int device_index) : device_(open_device(device_index)) {}
  ~CudaOps() override { cudaStreamSynchronize(stream_.get()); }

  void embed(const ::gptoss::EmbedArgs& args) override;
  void rms_norm(const RmsNormArgs& args) override;
  void linear_bf16(const LinearBf16Args& args) override;
  void linear_mxfp4_int8(const LinearMxfp4OpArgs& args) override;
  void swiglu(const SwigluArgs& args) override;
  void rope(const RopeArgs& args) override;
  void attention(const AttentionOpArgs& args) override;
  void router_topk(const RouterTopkArgs& args) override;
  void moe_combine(const MoeCombineArgs& args) override;
  void draw_tokens(const DrawTokensOpArgs& args) override { draw_rows(args, enter()); }

  void linear_int8(const LinearBf16Args&) override { refuse("linear", "dense='int8'"); }
  void quantize_int8(const QuantizeInt8OpArgs&) override { refuse("quantize_int8", "int8"); }
  void quantize_int15(const QuantizeInt15OpArgs&) override { refuse("quantize_int15", "int8"); }
  void linear_mxfp4_float32(const LinearMxfp4OpArgs&) override {
    refuse("linear_mxfp4", "precision='float32'");
  }

 private:
  [[noreturn]] static void refuse(const char* op, const char* what) {
    throw InvalidArgument(
        cat("[", op, "] expected an op that CUDA devices have, got ", what, "; use device='cpu'"));
  }
  cudaStream_t enter() {
    check(cudaSetDevice(device_.index), "op");
    return stream_.get();
  }

  // The kernels of a call, as `timing_` says, with what was prepared on the default stream done.
  template <typename Kernels>
  void run(Kernels&& kernels) {
    check(cudaDeviceSynchronize(), "op");
    kernel_seconds_.clear();
    const int repeats = std::max(timing_.repeats, 1);
    if (evicting_.num_bytes() < timing_.evict_bytes) {
      evicting_ = DeviceBuffer(timing_.evict_bytes, "a sweep of the caches");
    }
    for (int repeat = 0; repeat < repeats; ++repeat) {
      if (timing_.evict_bytes > 0) {
        check(
            cudaMemsetAsync(evicting_.as<std::byte>(), repeat, timing_.evict_bytes, stream_.get()),
            "op");
      }
      check(cudaEventRecord(start_.get(), stream_.get()), "op");
      kernels();
      check(cudaEventRecord(stop_.get(), stream_.get()), "op");
      check(cudaEventSynchronize(stop_.get()), "op");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()), "op");
      if (timing_.repeats > 0) kernel_seconds_.push_back(1e-3 * milliseconds);
    }
  }

  DeviceBuffer rounded(MatrixView<const float> x, const std::int32_t* rows, std::int64_t num_rows);
  void attend(const AttentionOpArgs& args, const StepView& step, std::int64_t first_row,
              const __nv_bfloat16* q, __nv_bfloat16* out);

  const DeviceInfo device_;
  Stream stream_;
  TimingEvent start_, stop_;
  DeviceBuffer evicting_;
};

void CudaOps::embed(const ::gptoss::EmbedArgs& args) {
  const cudaStream_t stream = enter();
  const auto tokens = op_vector(args.tokens, args.out.rows);
  const OpMatrix<const bf16> table(args.table);
  OpMatrix<float> out(args.out);
  run([&] {
    cuda::embed({.tokens = tokens.data(),
                 .embedding = as_bf16(table.data()),
                 .num_rows = narrow(args.out.rows),
                 .hidden = narrow(args.out.cols),
                 .residual = out.data(),
                 .norm_scale = nullptr,
                 .xs = nullptr,
                 .square_sums = nullptr},
                Dependence::kFull, stream);
  });
  out.finish();
}

void CudaOps::rms_norm(const RmsNormArgs& args) {
  const cudaStream_t stream = enter();
  const OpMatrix<const float> x(args.x);
  const auto scale = op_vector(args.scale, args.x.cols);
  OpMatrix<float> out(args.out);
  run([&] {
    cuda::rms_norm<float>({.x = x.data(),
                           .rows = nullptr,
                           .scale = as_bf16(scale.data()),
                           .eps = args.eps,
                           .out = out.data(),
                           .num_rows = narrow(args.x.rows),
                           .hidden = narrow(args.x.cols)},
                          stream);
  });
  out.finish();
}

DeviceBuffer CudaOps::rounded(MatrixView<const float> x, const std::int32_t* rows,
                              std::int64_t num_rows) {
  const OpMatrix<const float> values(x);
  DeviceBuffer out = device_array<__nv_bfloat16>(num_rows * padded(x.cols));
  round_rows({values.data(), rows, num_rows, x.cols, out.as<__nv_bfloat16>(), padded(x.cols)},
             stream_.get());
  stream_.synchronize("op");
  return out;
}

void CudaOps::linear_bf16(const LinearBf16Args& args) {
  const cudaStream_t stream = enter();
  const OpMatrix<const bf16> weight(args.weight);
  const DeviceBuffer x = rounded(args.x, nullptr, args.x.rows);
  DenseTiles tiles{nullptr, args.weight.rows, padded(args.weight.cols)};
  const DeviceBuffer tile_memory = device_array<std::uint8_t>(tiles.num_bytes());
  tiles.data = tile_memory.as<std::uint8_t>();
  repack_dense({reinterpret_cast<const std::uint16_t*>(as_bf16(weight.data())), args.weight.rows,
                args.weight.cols, RowOrder::kNatural, tile_memory.as<std::uint8_t>()},
               stream);
  const auto bias = op_vector(args.bias, args.bias == nullptr ? 0 : args.weight.rows);
  OpMatrix<float> out(args.out);
  const bool adds = args.epilogue == Epilogue::kAdd;
  run([&] {
    cuda::linear_bf16({.weight = tiles,
                       .bias = args.bias == nullptr ? nullptr : as_bf16(bias.data()),
                       .x = x.as<__nv_bfloat16>(),
                       .num_tokens = narrow(args.x.rows),
                       .output = adds ? TileOutput::kAdd : TileOutput::kStore,
                       .out = out.data(),
                       .out_stride = args.out.cols},
                      device_, stream);
  });
  out.finish();
}

void CudaOps::linear_mxfp4_int8(const LinearMxfp4OpArgs& args) {
  const cudaStream_t stream = enter();
  const std::int64_t rows = args.weight.rows;
  const std::int64_t cols = args.weight.cols;
  const auto blocks = op_vector(args.weight.blocks, rows * cols / 2);
  const auto scales = op_vector(args.weight.scales, rows * cols / kMxBlock);
  const auto bias = op_vector(args.bias, rows);
  MxTiles tiles{nullptr, 1, rows, cols};
  const DeviceBuffer tile_memory = device_array<std::uint8_t>(tiles.num_bytes());
  tiles.data = tile_memory.as<std::uint8_t>();
  repack_mx({blocks.data(), scales.data(), rows, cols, RowOrder::kNatural,
             tile_memory.as<std::uint8_t>()},
            stream);
  const auto x_rows = op_vector(args.x_rows, args.num_rows);
  const DeviceBuffer x = rounded(args.x, x_rows.data(), args.num_rows);

  // One expert takes all rows.
  const std::int32_t num_slots = narrow(args.num_rows);
  const std::int32_t tile_tokens = expert_tile_tokens(num_slots, 1, device_);
  std::vector<TokenTile> list;
  const std::int32_t num_tiles = narrow(tiles_along(num_slots, tile_tokens));
  for (std::int32_t i = 0; i <= num_tiles; ++i) {  // one more: where all end
    const std::int32_t from = std::min(i * tile_tokens, num_slots);
    list.push_back({0, from, std::min(tile_tokens, num_slots - from), i * tile_work(tile_tokens)});
  }
  const auto list_device = op_vector(std::as_const(list).data(), num_tiles + 1);
  const auto count_device = op_vector(&num_tiles, 1);
  const DeviceBuffer product = device_array<float>(args.num_rows * rows);
  run([&] {
    cuda::linear_mxfp4({.weight = tiles,
                        .bias = as_bf16(bias.data()),
                        .x = x.as<__nv_bfloat16>(),
                        .num_slots = num_slots,
                        .tiles = list_device.data(),
                        .num_tiles = count_device.data(),
                        .tile_tokens = tile_tokens,
                        .output = TileOutput::kStore,
                        .out = product.as<float>(),
                        .out_stride = rows,
                        .swiglu_limit = 0,
                        .swiglu_alpha = 0},
                       device_, stream);
  });
  // Each row to its place in the caller's matrix.
  const std::vector<std::int32_t> out_rows = to_host(matrix(args.out_rows, 1, args.num_rows));
  for (std::int64_t i = 0; i < args.num_rows; ++i) {
    check(cudaMemcpyAsync(
              args.out.row(out_rows[static_cast<std::size_t>(i)]), product.as<float>() + i * rows,
              static_cast<std::size_t>(rows) * sizeof(float), cudaMemcpyDefault, stream),
          "linear_mxfp4");
  }
  stream_.synchronize("linear_mxfp4");
}

void CudaOps::swiglu(const SwigluArgs& args) {
  const cudaStream_t stream = enter();
  const OpMatrix<const float> gate_up(args.gate_up);
  OpMatrix<float> out(args.out);
  run([&] {
    swiglu_rows({gate_up.data(), args.out.rows, args.out.cols, args.limit, args.alpha, out.data()},
                stream);
  });
  out.finish();
}

void CudaOps::rope(const RopeArgs& args) {
  const cudaStream_t stream = enter();
  const OpMatrix<const float> cos_sin(args.cos_sin);
  OpMatrix<float> x(args.x);
  run([&] { rotate_rows(x.data(), args.x.rows, args.num_heads, cos_sin.data(), stream); });
  x.finish();
}

void CudaOps::router_topk(const RouterTopkArgs& args) {
  const cudaStream_t stream = enter();
  const std::int64_t num_choices = args.logits.rows * args.experts_per_token;
  const OpMatrix<const float> logits(args.logits);
  const auto forced = op_vector(args.forced, args.forced == nullptr ? 0 : num_choices);
  auto expert_ids = op_vector(args.expert_ids, num_choices);
  auto weights = op_vector(args.weights, num_choices);
  run([&] {
    cuda::router_topk({.logits = logits.data(),
                       .forced = args.forced == nullptr ? nullptr : forced.data(),
                       .expert_ids = expert_ids.data(),
                       .weights = weights.data(),
                       .num_rows = narrow(args.logits.rows),
                       .num_experts = narrow(args.logits.cols),
                       .experts_per_token = narrow(args.experts_per_token)},
                      stream);
  });
  expert_ids.finish();
  weights.finish();
}

void CudaOps::moe_combine(const MoeCombineArgs& args) {
  const cudaStream_t stream = enter();
  const OpMatrix<const float> expert_out(args.expert_out);
  const auto weights = op_vector(args.weights, args.out.rows * args.experts_per_token);
  OpMatrix<float> out(args.out);
  run([&] {
    cuda::moe_combine({.expert_out = expert_out.data(),
                       .places = nullptr,
                       .weights = weights.data(),
                       .experts_per_token = narrow(args.experts_per_token),
                       .residual = out.data(),
                       .norm_scale = nullptr,
                       .norm_eps = 0,
                       .xs = nullptr,
                       .num_rows = narrow(args.out.rows),
                       .hidden = narrow(args.out.cols)},
                      stream);
  });
  out.finish();
}

// Keys and values of one layer in pages, as step.h lays them out; slots past the history hold NaN.
std::vector<std::uint16_t> pages_of(const AttentionOpArgs& args) {
  const std::vector<float> keys = to_host(args.k);
  const std::vector<float> values = to_host(args.v);
  const std::int64_t history = args.k.rows;
  const std::int64_t heads = args.num_kv_heads;
  const std::int64_t num_pages = tiles_along(history, kPageTokens);
  const std::int64_t half = heads * kPageTokens * kHeadDim;
  std::vector<std::uint16_t> pages(static_cast<std::size_t>(num_pages * 2 * half), 0xffff);
  for (std::int64_t token = 0; token < history; ++token) {
    for (std::int64_t i = 0; i < heads * kHeadDim; ++i) {
      const std::int64_t at = token / kPageTokens * 2 * half +
                              (i / kHeadDim * kPageTokens + token % kPageTokens) * kHeadDim +
                              i % kHeadDim;
      const auto from = static_cast<std::size_t>(token * heads * kHeadDim + i);
      pages[static_cast<std::size_t>(at)] = to_bf16(keys[from]).bits;
      pages[static_cast<std::size_t>(at + half)] = to_bf16(values[from]).bits;
    }
  }
  return pages;
}

void CudaOps::attend(const AttentionOpArgs& args, const StepView& step, std::int64_t first_row,
                     const __nv_bfloat16* q, __nv_bfloat16* out) {
  const auto sinks = op_vector(args.sinks, args.num_heads);
  const DeviceBuffer workspace = device_array<std::uint8_t>(
      static_cast<std::int64_t>(attention_workspace_bytes(args.num_heads)));
  check(cudaMemset(workspace.as<std::byte>(), 0, workspace.num_bytes()), "attention");
  const std::int64_t offset = first_row * args.num_heads * kHeadDim;
  const AttentionArgs kernel_args{.step = step,
                                  .q = q + offset,
                                  .sinks = as_bf16(sinks.data()),
                                  .out = out + offset,
                                  .group = KvGroup::kFull,
                                  .layer_offset = 0,
                                  .window = narrow(args.window),
                                  .num_heads = narrow(args.num_heads),
                                  .num_kv_heads = narrow(args.num_kv_heads),
                                  .workspace = workspace.as<void>()};
  run([&] {
    if (args.way == AttentionWay::kSplit) {
      attention_decode(kernel_args, device_, Dependence::kFull, stream_.get());
    } else {
      attention_prefill(kernel_args, device_, stream_.get());
    }
  });
}

void CudaOps::attention(const AttentionOpArgs& args) {
  const cudaStream_t stream = enter();
  GPTOSS_REQUIRE(InvalidArgument, args.dtype == KvDtype::kBf16,
                 "[attention] expected kv_dtype='bf16' on a CUDA device, got 'float32'");
  const std::vector<std::uint16_t> page_values = pages_of(args);
  const auto pages = op_vector(page_values.data(), std::ssize(page_values));
  std::vector<__nv_bfloat16*> addresses;
  const std::int64_t page_size = 2 * args.num_kv_heads * kPageTokens * kHeadDim;
  for (std::int64_t i = 0; i < tiles_along(args.k.rows, kPageTokens); ++i) {
    addresses.push_back(reinterpret_cast<__nv_bfloat16*>(pages.data()) + i * page_size);
  }
  const auto address_device = op_vector(addresses.data(), std::ssize(addresses));
  const DeviceBuffer q = rounded(args.q, nullptr, args.q.rows);
  const std::int64_t out_size = args.q.rows * args.num_heads * kHeadDim;
  const DeviceBuffer out = device_array<__nv_bfloat16>(out_size);

  // Whole: one segment of all rows. Split: at most kSmallRows rows at a time, one segment.
  const std::int64_t step_rows = args.way == AttentionWay::kSplit
                                     ? std::min<std::int64_t>(args.q.rows, kSmallRows)
                                     : args.q.rows;
  for (std::int64_t row = 0; row < args.q.rows; row += step_rows) {
    const std::int32_t count = narrow(std::min(step_rows, args.q.rows - row));
    const std::int32_t position = narrow(args.k.rows - args.q.rows + row);
    std::vector<std::int32_t> positions(static_cast<std::size_t>(std::max(count, kSmallRows)), -1);
    for (std::int32_t i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = position + i;
    const std::vector<std::int32_t> segment_of(positions.size(), 0);
    const SegmentInfo segment{0, count, position, {0, 0}, {0, 0}};
    const auto positions_device = op_vector(positions.data(), std::ssize(positions));
    const auto segment_of_device = op_vector(segment_of.data(), std::ssize(segment_of));
    const auto segment_device = op_vector(&segment, 1);
    StepView step{};
    step.positions = positions_device.data();
    step.segment_of = segment_of_device.data();
    step.segments = segment_device.data();
    step.pages = address_device.data();
    step.num_rows = count;
    step.num_segments = 1;
    step.max_position = position + count - 1;
    attend(args, step, row, q.as<__nv_bfloat16>(), out.as<__nv_bfloat16>());
  }
  OpMatrix<float> result(args.out);
  widen(out.as<__nv_bfloat16>(), out_size, result.data(), stream);
  stream_.synchronize("attention");
  result.finish();
}

}  // namespace
}  // namespace gptoss::cuda

namespace gptoss {

std::unique_ptr<OpTable> make_cuda_ops(int device_index) {
  return std::make_unique<cuda::CudaOps>(device_index);
}

}  // namespace gptoss
