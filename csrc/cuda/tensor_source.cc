#include "cuda/tensor_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "cuda/device.h"
#include "cuda/kernels/synthesize.h"

namespace gptoss::cuda {
namespace {

const void* mapped(const Weights& weights, const TensorSlice& slice) {
  const auto layer = [&]() -> const LayerWeights& {
    return weights.layers[static_cast<std::size_t>(slice.layer)];
  };
  switch (slice.tensor) {
    case Tensor::kEmbedding:
      return weights.embedding.data;
    case Tensor::kFinalNorm:
      return weights.final_norm;
    case Tensor::kUnembedding:
      return weights.unembedding.data;
    case Tensor::kAttnNorm:
      return layer().attn_norm;
    case Tensor::kQWeight:
      return layer().q_weight.data;
    case Tensor::kKWeight:
      return layer().k_weight.data;
    case Tensor::kVWeight:
      return layer().v_weight.data;
    case Tensor::kQBias:
      return layer().q_bias;
    case Tensor::kKBias:
      return layer().k_bias;
    case Tensor::kVBias:
      return layer().v_bias;
    case Tensor::kSinks:
      return layer().sinks;
    case Tensor::kOutWeight:
      return layer().out_weight.data;
    case Tensor::kOutBias:
      return layer().out_bias;
    case Tensor::kMlpNorm:
      return layer().mlp_norm;
    case Tensor::kRouterWeight:
      return layer().router_weight.data;
    case Tensor::kRouterBias:
      return layer().router_bias;
    case Tensor::kGateUpBlocks:
      return layer().gate_up.blocks;
    case Tensor::kGateUpScales:
      return layer().gate_up.scales;
    case Tensor::kGateUpBias:
      return layer().gate_up.bias;
    case Tensor::kDownBlocks:
      return layer().down.blocks;
    case Tensor::kDownScales:
      return layer().down.scales;
    case Tensor::kDownBias:
      return layer().down.bias;
  }
  return nullptr;
}

// Mean and deviation of a bf16 tensor: products keep unit variance, attention scores and router
// logits are spread.
Normal distribution(const ModelConfig& config, Tensor tensor) {
  const auto over = [](double scale, std::int64_t fan_in) {
    return Normal{0.0f, static_cast<float>(scale / std::sqrt(static_cast<double>(fan_in)))};
  };
  switch (tensor) {
    case Tensor::kAttnNorm:
    case Tensor::kMlpNorm:
    case Tensor::kFinalNorm:
      return {1.0f, 0.2f};
    case Tensor::kSinks:
      return {1.0f, 1.5f};
    case Tensor::kEmbedding:
      return {0.0f, 1.0f};
    case Tensor::kQWeight:
    case Tensor::kKWeight:
      return over(1.3, config.hidden_size);
    case Tensor::kRouterWeight:
    case Tensor::kUnembedding:
      return over(2.0, config.hidden_size);
    case Tensor::kVWeight:
      return over(1.0, config.hidden_size);
    case Tensor::kOutWeight:
      return over(1.0, config.q_size());
    default:
      return {0.0f, 0.3f};  // biases
  }
}

// Scale bytes lie around this one: the first product's deviation is 3.5, so that some of its
// outputs exceed the clamp at 7, the second's 0.25; e2m1 codes drawn uniformly have 2.926.
std::uint8_t scale_centre(const ModelConfig& config, Tensor tensor) {
  const bool first = tensor == Tensor::kGateUpScales;
  const double wanted = first ? 3.5 : 0.25;
  const auto fan_in = static_cast<double>(first ? config.hidden_size : config.intermediate_size);
  const double weight = wanted / std::sqrt(fan_in);
  return static_cast<std::uint8_t>(127 + std::lround(std::log2(weight / (1.2 * 2.926))));
}

}  // namespace

void MappedSource::read(const TensorSlice& slice, std::byte* pinned, std::uint8_t* out,
                        cudaStream_t stream) const {
  const auto* from = static_cast<const std::byte*>(mapped(weights_, slice));
  std::memcpy(pinned, from + slice.begin, slice.num_bytes);
  check(cudaMemcpyAsync(out, pinned, slice.num_bytes, cudaMemcpyHostToDevice, stream), "upload");
}

int MappedSource::num_readers() const {
  // A core copies some 5 GB/s out of the page cache; the link takes about 50.
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 12u));
}

void SyntheticSource::read(const TensorSlice& slice, std::byte*, std::uint8_t* out,
                           cudaStream_t stream) const {
  SynthesizeArgs args;
  args.seed = seed_;
  args.stream =
      static_cast<std::uint64_t>(slice.tensor) << 32 | static_cast<std::uint64_t>(slice.layer);
  args.begin = slice.begin;
  args.num_bytes = slice.num_bytes;
  args.out = out;
  switch (slice.tensor) {
    case Tensor::kGateUpBlocks:
    case Tensor::kDownBlocks:
      args.kind = Synthesized::kBytes;
      break;
    case Tensor::kGateUpScales:
    case Tensor::kDownScales:
      args.kind = Synthesized::kScales;
      args.smallest_scale = static_cast<std::uint8_t>(scale_centre(config_, slice.tensor) - 2);
      break;
    default:
      args.kind = Synthesized::kNormal;
      args.normal = distribution(config_, slice.tensor);
  }
  synthesize(args, stream);
}

}  // namespace gptoss::cuda
