#include "model/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <unordered_map>

#include "base/error.h"

namespace gptoss {
namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += cat('[', size, ']');
  return text.empty() ? "[]" : text;
}

// Looks tensors up by name, checks them, and turns them into addresses.
class TensorTable {
 public:
  TensorTable(const std::vector<TensorRecord>& records, const std::vector<MappedFile>& files)
      : files_(files) {
    for (const TensorRecord& record : records) {
      GPTOSS_REQUIRE(CheckpointError, by_name_.emplace(record.name, &record).second,
                     "[load_checkpoint] tensor ", record.name,
                     ": expected once, found twice; the checkpoint is damaged");
    }
  }

  const std::byte* find(const std::string& name, const char* dtype, std::int64_t item_bytes,
                        const std::vector<std::int64_t>& shape) const {
    const auto found = by_name_.find(name);
    GPTOSS_REQUIRE(CheckpointError, found != by_name_.end(), "[load_checkpoint] expected tensor ",
                   name, ", it is missing; is this a gpt-oss checkpoint, completely downloaded?");
    const TensorRecord& record = *found->second;
    GPTOSS_REQUIRE(CheckpointError, record.dtype == dtype && record.shape == shape,
                   "[load_checkpoint] ", name, ": expected ", shape_text(shape), ' ', dtype,
                   ", found ", shape_text(record.shape), ' ', record.dtype,
                   "; is this a gpt-oss checkpoint?");
    GPTOSS_REQUIRE(CheckpointError,
                   record.file >= 0 && record.file < static_cast<std::int64_t>(files_.size()),
                   "[load_checkpoint] ", name, ": expected a file index below ", files_.size(),
                   ", got ", record.file);
    const MappedFile& file = files_[static_cast<std::size_t>(record.file)];
    std::int64_t bytes = item_bytes;  // sizes were bounded by ModelConfig::validate
    for (const std::int64_t size : shape) bytes *= size;
    GPTOSS_REQUIRE(
        CheckpointError,
        record.begin >= 0 && record.end <= file.num_bytes() && record.end - record.begin == bytes,
        "[load_checkpoint] ", name, ": expected ", bytes, " bytes inside ", file.path(), " (",
        file.num_bytes(), " bytes), found ", record.begin, " to ", record.end,
        "; the file is truncated or its header lies");
    return file.data() + record.begin;
  }

  const bf16* vector(const std::string& name, std::int64_t size) const {
    return reinterpret_cast<const bf16*>(find(name, "BF16", 2, {size}));
  }
  MatrixView<const bf16> matrix(const std::string& name, std::int64_t rows,
                                std::int64_t cols) const {
    return gptoss::matrix(reinterpret_cast<const bf16*>(find(name, "BF16", 2, {rows, cols})), rows,
                          cols);
  }
  MxExperts experts(const std::string& blocks, const std::string& scales, const std::string& bias,
                    std::int64_t num_experts, std::int64_t rows, std::int64_t cols) const {
    MxExperts result;
    result.blocks = reinterpret_cast<const std::uint8_t*>(
        find(blocks, "U8", 1, {num_experts, rows, cols / kMxBlock, kMxBlockBytes}));
    result.scales = reinterpret_cast<const std::uint8_t*>(
        find(scales, "U8", 1, {num_experts, rows, cols / kMxBlock}));
    result.bias = reinterpret_cast<const bf16*>(find(bias, "BF16", 2, {num_experts, rows}));
    result.num_experts = num_experts;
    result.rows = rows;
    result.cols = cols;
    return result;
  }

 private:
  std::unordered_map<std::string, const TensorRecord*> by_name_;
  const std::vector<MappedFile>& files_;
};

// model.layers.N.…, q, k and v apart.
Weights resolve_hugging_face(const ModelConfig& c, const TensorTable& tensors) {
  Weights weights;
  weights.embedding = tensors.matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size);
  weights.final_norm = tensors.vector("model.norm.weight", c.hidden_size);
  weights.unembedding = tensors.matrix("lm_head.weight", c.vocab_size, c.hidden_size);
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = cat("model.layers.", i, '.');
    const std::string attn = layer + "self_attn.";
    const std::string experts = layer + "mlp.experts.";
    LayerWeights w;
    w.attn_norm = tensors.vector(layer + "input_layernorm.weight", c.hidden_size);
    w.q_weight = tensors.matrix(attn + "q_proj.weight", c.q_size(), c.hidden_size);
    w.k_weight = tensors.matrix(attn + "k_proj.weight", c.kv_size(), c.hidden_size);
    w.v_weight = tensors.matrix(attn + "v_proj.weight", c.kv_size(), c.hidden_size);
    w.q_bias = tensors.vector(attn + "q_proj.bias", c.q_size());
    w.k_bias = tensors.vector(attn + "k_proj.bias", c.kv_size());
    w.v_bias = tensors.vector(attn + "v_proj.bias", c.kv_size());
    w.sinks = tensors.vector(attn + "sinks", c.num_heads);
    w.out_weight = tensors.matrix(attn + "o_proj.weight", c.hidden_size, c.q_size());
    w.out_bias = tensors.vector(attn + "o_proj.bias", c.hidden_size);
    w.mlp_norm = tensors.vector(layer + "post_attention_layernorm.weight", c.hidden_size);
    w.router_weight = tensors.matrix(layer + "mlp.router.weight", c.num_experts, c.hidden_size);
    w.router_bias = tensors.vector(layer + "mlp.router.bias", c.num_experts);
    w.gate_up = tensors.experts(experts + "gate_up_proj_blocks", experts + "gate_up_proj_scales",
                                experts + "gate_up_proj_bias", c.num_experts,
                                2 * c.intermediate_size, c.hidden_size);
    w.down = tensors.experts(experts + "down_proj_blocks", experts + "down_proj_scales",
                             experts + "down_proj_bias", c.num_experts, c.hidden_size,
                             c.intermediate_size);
    weights.layers.push_back(w);
  }
  return weights;
}

// block.N.…, q, k and v one below the other in one matrix: three views into it.
Weights resolve_original(const ModelConfig& c, const TensorTable& tensors) {
  Weights weights;
  weights.embedding = tensors.matrix("embedding.weight", c.vocab_size, c.hidden_size);
  weights.final_norm = tensors.vector("norm.scale", c.hidden_size);
  weights.unembedding = tensors.matrix("unembedding.weight", c.vocab_size, c.hidden_size);
  const std::int64_t qkv_size = c.q_size() + 2 * c.kv_size();
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const std::string attn = cat("block.", i, ".attn.");
    const std::string mlp = cat("block.", i, ".mlp.");
    LayerWeights w;
    w.attn_norm = tensors.vector(attn + "norm.scale", c.hidden_size);
    const auto qkv = tensors.matrix(attn + "qkv.weight", qkv_size, c.hidden_size);
    const bf16* qkv_bias = tensors.vector(attn + "qkv.bias", qkv_size);
    w.q_weight = matrix(qkv.row(0), c.q_size(), c.hidden_size);
    w.k_weight = matrix(qkv.row(c.q_size()), c.kv_size(), c.hidden_size);
    w.v_weight = matrix(qkv.row(c.q_size() + c.kv_size()), c.kv_size(), c.hidden_size);
    w.q_bias = qkv_bias;
    w.k_bias = qkv_bias + c.q_size();
    w.v_bias = qkv_bias + c.q_size() + c.kv_size();
    w.sinks = tensors.vector(attn + "sinks", c.num_heads);
    w.out_weight = tensors.matrix(attn + "out.weight", c.hidden_size, c.q_size());
    w.out_bias = tensors.vector(attn + "out.bias", c.hidden_size);
    w.mlp_norm = tensors.vector(mlp + "norm.scale", c.hidden_size);
    w.router_weight = tensors.matrix(mlp + "gate.weight", c.num_experts, c.hidden_size);
    w.router_bias = tensors.vector(mlp + "gate.bias", c.num_experts);
    w.gate_up =
        tensors.experts(mlp + "mlp1_weight.blocks", mlp + "mlp1_weight.scales", mlp + "mlp1_bias",
                        c.num_experts, 2 * c.intermediate_size, c.hidden_size);
    w.down = tensors.experts(mlp + "mlp2_weight.blocks", mlp + "mlp2_weight.scales",
                             mlp + "mlp2_bias", c.num_experts, c.hidden_size, c.intermediate_size);
    weights.layers.push_back(w);
  }
  return weights;
}

std::int64_t num_scales(const MxExperts& experts) {
  return experts.num_experts * experts.rows * (experts.cols / kMxBlock);
}

// A scale byte of 255 is NaN (OCP microscaling 1.0, section 5.3.1): no published checkpoint has
// one.
void require_finite_scales(const MxExperts& experts, std::size_t layer, const char* matrix_name) {
  const void* found =
      std::memchr(experts.scales, 255, static_cast<std::size_t>(num_scales(experts)));
  if (found == nullptr) return;
  const std::int64_t index = static_cast<const std::uint8_t*>(found) - experts.scales;
  const std::int64_t per_row = experts.cols / kMxBlock;
  throw CheckpointError(cat("[load_checkpoint] layer ", layer, ' ', matrix_name,
                            " scales: expected finite scales, expert ",
                            index / per_row / experts.rows, " row ", index / per_row % experts.rows,
                            " block ", index % per_row,
                            " is NaN (byte 255); the checkpoint is damaged, download it again"));
}

// One pass over 1/17 of the expert bytes, by several threads: it is bound by page faults.
void check_all_scales(const Weights& weights) {
  const std::size_t num_layers = weights.layers.size();
  std::atomic<std::size_t> next{0};
  std::vector<std::exception_ptr> errors(num_layers);
  const auto work = [&] {
    for (std::size_t i; (i = next.fetch_add(1)) < num_layers;) {
      try {
        require_finite_scales(weights.layers[i].gate_up, i, "gate_up");
        require_finite_scales(weights.layers[i].down, i, "down");
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> helpers;
  const std::size_t num_threads =
      std::min<std::size_t>({num_layers, 8, std::max(1u, std::thread::hardware_concurrency())});
  for (std::size_t i = 1; i < num_threads; ++i) helpers.emplace_back(work);
  work();
  helpers.clear();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace

void MappedCheckpoint::check_files() const {
  for (const MappedFile& file : files) file.check_not_shrunk();
}

MappedCheckpoint map_checkpoint(const ModelConfig& config, const std::vector<CheckpointFile>& files,
                                const std::vector<TensorRecord>& records,
                                const CheckpointOptions& options) {
  config.validate();
  MappedCheckpoint checkpoint;
  for (const CheckpointFile& file : files) {
    checkpoint.files.emplace_back(file.path, file.num_bytes, options.map_mode);
    if (options.lock) checkpoint.files.back().lock();
  }
  const TensorTable tensors(records, checkpoint.files);
  checkpoint.weights = options.layout == CheckpointLayout::kHuggingFace
                           ? resolve_hugging_face(config, tensors)
                           : resolve_original(config, tensors);
  if (options.check_scales) check_all_scales(checkpoint.weights);
  return checkpoint;
}

}  // namespace gptoss
