#include "cuda/weights.h"

#include <algorithm>

#include "cuda/kernels/repack.h"
#include "cuda/kernels/rope_table.h"
#include "cuda/upload.h"
#include "model/yarn.h"

namespace gptoss::cuda {
namespace {

DenseTiles dense(Arena& arena, std::int64_t rows, std::int64_t cols) {
  DenseTiles tiles{nullptr, rows, cols};
  tiles.data = arena.take<std::uint8_t>(tiles.num_bytes());
  return tiles;
}

MxTiles mx(Arena& arena, std::int64_t num_experts, std::int64_t rows, std::int64_t cols) {
  MxTiles tiles{nullptr, num_experts, rows, cols};
  tiles.data = arena.take<std::uint8_t>(tiles.num_bytes());
  return tiles;
}

std::uint8_t* writable(const void* data) {
  return static_cast<std::uint8_t*>(const_cast<void*>(data));
}

// Cuts tensors into tasks of at most kTaskBytes, so that threads share them evenly and staging
// memory stays small.
class Planner {
 public:
  explicit Planner(Upload& upload) : upload_(upload) {}

  // As it is.
  void copy(Tensor tensor, std::int64_t layer, std::int64_t count, const void* out) {
    const std::size_t total = static_cast<std::size_t>(count) * sizeof(std::uint16_t);
    for (std::size_t begin = 0; begin < total; begin += Upload::kTaskBytes) {
      const std::size_t size = std::min(Upload::kTaskBytes, total - begin);
      upload_.add(size, [=](Lane& lane) {
        lane.fetch_to({tensor, layer, begin, size}, writable(out) + begin);
      });
    }
  }

  // Rows of a bf16 matrix into tiles that begin at row `first_row` of `tiles`.
  void matrix(Tensor tensor, std::int64_t layer, std::int64_t rows, RowOrder order,
              const DenseTiles& tiles, std::int64_t first_row) {
    const std::int64_t cols = tiles.cols;
    const std::int64_t step = rows_a_task(cols * 2);
    for (std::int64_t row = 0; row < rows; row += step) {
      const std::int64_t count = std::min(step, rows - row);
      const auto size = static_cast<std::size_t>(count * cols * 2);
      std::uint8_t* const out =
          writable(tiles.data) + (first_row + row) / kTileRows * tiles.k_tiles() * kDenseTileBytes;
      upload_.add(size, [=](Lane& lane) {
        const auto* source = reinterpret_cast<const std::uint16_t*>(
            lane.fetch({tensor, layer, static_cast<std::size_t>(row * cols * 2), size}));
        repack_dense({source, count, cols, order, out}, lane.stream());
      });
    }
  }

  void experts(Tensor blocks, Tensor scales, std::int64_t layer, RowOrder order,
               const MxTiles& tiles) {
    const std::int64_t block_bytes = tiles.cols / kMxBlock * kMxBlockBytes;
    const std::int64_t scale_bytes = tiles.cols / kMxBlock;
    const std::int64_t step = rows_a_task(block_bytes + scale_bytes);
    for (std::int64_t expert = 0; expert < tiles.num_experts; ++expert) {
      for (std::int64_t row = 0; row < tiles.rows; row += step) {
        const std::int64_t count = std::min(step, tiles.rows - row);
        const std::int64_t first = expert * tiles.rows + row;
        std::uint8_t* const out = writable(tiles.data) + expert * tiles.expert_bytes() +
                                  row / kTileRows * tiles.k_chunks() * kMxRecordBytes;
        const auto slice = [=](Tensor tensor, std::int64_t row_bytes) {
          return TensorSlice{tensor, layer, static_cast<std::size_t>(first * row_bytes),
                             static_cast<std::size_t>(count * row_bytes)};
        };
        const TensorSlice block_slice = slice(blocks, block_bytes);
        const TensorSlice scale_slice = slice(scales, scale_bytes);
        const std::int64_t cols = tiles.cols;
        upload_.add(block_slice.num_bytes + scale_slice.num_bytes, [=](Lane& lane) {
          const std::uint8_t* block_data = lane.fetch(block_slice);
          const std::uint8_t* scale_data = lane.fetch(scale_slice);
          repack_mx({block_data, scale_data, count, cols, order, out}, lane.stream());
        });
      }
    }
  }

  // Values that belong to rows, [count][rows].
  void bias(Tensor tensor, std::int64_t layer, std::int64_t size, RowOrder order, const void* out) {
    const auto num_bytes = static_cast<std::size_t>(size) * sizeof(std::uint16_t);
    upload_.add(num_bytes, [=](Lane& lane) {
      const auto* source =
          reinterpret_cast<const std::uint16_t*>(lane.fetch({tensor, layer, 0, num_bytes}));
      reorder_vector(source, size, order, reinterpret_cast<std::uint16_t*>(writable(out)),
                     lane.stream());
    });
  }

  void router(std::int64_t layer, std::int64_t num_experts, std::int64_t hidden,
              const void* by_channel) {
    const auto num_bytes = static_cast<std::size_t>(num_experts * hidden) * sizeof(std::uint16_t);
    upload_.add(num_bytes, [=](Lane& lane) {
      const auto* source = reinterpret_cast<const std::uint16_t*>(
          lane.fetch({Tensor::kRouterWeight, layer, 0, num_bytes}));
      router_by_channel(source, num_experts, hidden,
                        reinterpret_cast<std::uint16_t*>(writable(by_channel)), lane.stream());
    });
  }

 private:
  // Whole heads, which are whole tiles.
  static std::int64_t rows_a_task(std::int64_t row_bytes) {
    return std::max<std::int64_t>(
        static_cast<std::int64_t>(Upload::kTaskBytes) / row_bytes / kHeadDim * kHeadDim, kHeadDim);
  }

  Upload& upload_;
};

void plan_layer(Planner& plan, const ModelConfig& config, std::int64_t index,
                const DeviceLayer& layer) {
  const std::int64_t q = config.q_size();
  const std::int64_t kv = config.kv_size();
  plan.experts(Tensor::kGateUpBlocks, Tensor::kGateUpScales, index, RowOrder::kSwiglu,
               layer.gate_up);
  plan.experts(Tensor::kDownBlocks, Tensor::kDownScales, index, RowOrder::kNatural, layer.down);
  plan.matrix(Tensor::kQWeight, index, q, RowOrder::kRope, layer.qkv, 0);
  plan.matrix(Tensor::kKWeight, index, kv, RowOrder::kRope, layer.qkv, q);
  plan.matrix(Tensor::kVWeight, index, kv, RowOrder::kRope, layer.qkv, q + kv);
  plan.matrix(Tensor::kOutWeight, index, config.hidden_size, RowOrder::kNatural, layer.out, 0);
  plan.matrix(Tensor::kRouterWeight, index, config.num_experts, RowOrder::kNatural, layer.router,
              0);
  plan.router(index, config.num_experts, config.hidden_size, layer.router_by_channel);
  plan.bias(Tensor::kQBias, index, q, RowOrder::kRope, layer.qkv_bias);
  plan.bias(Tensor::kKBias, index, kv, RowOrder::kRope, layer.qkv_bias + q);
  plan.bias(Tensor::kVBias, index, kv, RowOrder::kRope, layer.qkv_bias + q + kv);
  plan.bias(Tensor::kGateUpBias, index, config.num_experts * 2 * config.intermediate_size,
            RowOrder::kSwiglu, layer.gate_up_bias);
  plan.copy(Tensor::kDownBias, index, config.num_experts * config.hidden_size, layer.down_bias);
  plan.copy(Tensor::kAttnNorm, index, config.hidden_size, layer.attn_norm);
  plan.copy(Tensor::kSinks, index, config.num_heads, layer.sinks);
  plan.copy(Tensor::kOutBias, index, config.hidden_size, layer.out_bias);
  plan.copy(Tensor::kMlpNorm, index, config.hidden_size, layer.mlp_norm);
  plan.copy(Tensor::kRouterBias, index, config.num_experts, layer.router_bias);
}

}  // namespace

DeviceModel lay_out(const ModelConfig& config, Arena& arena) {
  const auto bf16s = [&](std::int64_t count) { return arena.take<__nv_bfloat16>(count); };
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t qkv_rows = config.q_size() + 2 * config.kv_size();
  DeviceModel model;
  model.config = config;
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    // In the order of use.
    DeviceLayer& layer = model.layers.emplace_back();
    layer.attn_norm = bf16s(hidden);
    layer.qkv = dense(arena, qkv_rows, hidden);
    layer.qkv_bias = bf16s(qkv_rows);
    layer.sinks = bf16s(config.num_heads);
    layer.out = dense(arena, hidden, config.q_size());
    layer.out_bias = bf16s(hidden);
    layer.mlp_norm = bf16s(hidden);
    layer.router = dense(arena, config.num_experts, hidden);
    layer.router_by_channel = bf16s(config.num_experts * hidden);
    layer.router_bias = bf16s(config.num_experts);
    layer.gate_up = mx(arena, config.num_experts, 2 * config.intermediate_size, hidden);
    layer.gate_up_bias = bf16s(config.num_experts * 2 * config.intermediate_size);
    layer.down = mx(arena, config.num_experts, hidden, config.intermediate_size);
    layer.down_bias = bf16s(config.num_experts * hidden);
  }
  model.embedding = bf16s(config.vocab_size * hidden);
  model.final_norm = bf16s(hidden);
  model.unembedding = dense(arena, config.vocab_size, hidden);
  model.rope_table = arena.take<float>(config.max_context * kHeadDim);
  return model;
}

std::size_t DeviceWeights::planned_bytes(const ModelConfig& config) {
  Arena arena(nullptr);
  lay_out(config, arena);
  return arena.num_bytes();
}

DeviceWeights::DeviceWeights(const ModelConfig& config, const TensorSource& source,
                             std::size_t workspace_bytes) {
  Upload upload(source);
  const std::size_t weights_bytes = planned_bytes(config);
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "load_model");
  // Staging memory is given back before the workspace is taken.
  const std::size_t more = std::max(upload.staging_bytes(), workspace_bytes);
  GPTOSS_REQUIRE(OutOfMemory, weights_bytes + more <= free_bytes, "[load_model] expected ",
                 weights_bytes, " bytes of device memory for weights and ", workspace_bytes,
                 " for the workspace of a step (", upload.staging_bytes(), " while loading), ",
                 free_bytes, " of ", total_bytes,
                 " are free; close other models or use another device");
  memory_ = DeviceBuffer(weights_bytes, "load_model");
  Arena arena(memory_.as<std::uint8_t>());
  model_ = lay_out(config, arena);

  Planner plan(upload);
  plan.matrix(Tensor::kUnembedding, 0, config.vocab_size, RowOrder::kNatural, model_.unembedding,
              0);
  plan.copy(Tensor::kEmbedding, 0, config.vocab_size * config.hidden_size, model_.embedding);
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    plan_layer(plan, config, i, model_.layers[static_cast<std::size_t>(i)]);
  }
  plan.copy(Tensor::kFinalNorm, 0, config.hidden_size, model_.final_norm);
  upload.add(0, [this, &config](Lane& lane) {
    fill_rope_table(Yarn(config), config.max_context, const_cast<float*>(model_.rope_table),
                    lane.stream());
  });
  upload.run();
}

}  // namespace gptoss::cuda
