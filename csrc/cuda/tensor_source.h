// Where weights come from while they are loaded: a mapped checkpoint, or a seed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "model/model_config.h"
#include "model/weights.h"

namespace gptoss::cuda {

// Tensors of model/weights.h, each row-major and without gaps.
enum class Tensor {
  kEmbedding,
  kFinalNorm,
  kUnembedding,
  kAttnNorm,
  kQWeight,
  kKWeight,
  kVWeight,
  kQBias,
  kKBias,
  kVBias,
  kSinks,
  kOutWeight,
  kOutBias,
  kMlpNorm,
  kRouterWeight,
  kRouterBias,
  kGateUpBlocks,
  kGateUpScales,
  kGateUpBias,
  kDownBlocks,
  kDownScales,
  kDownBias,
};

// Some bytes of one.
struct TensorSlice {
  Tensor tensor = Tensor::kEmbedding;
  std::int64_t layer = 0;  // ignored where there is one in all
  std::size_t begin = 0;   // bytes
  std::size_t num_bytes = 0;
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Puts the slice into device memory at `out`, in the order of the stream. `pinned` is host memory
  // of its size, the caller's to keep until the stream has passed. Called from several threads.
  virtual void read(const TensorSlice& slice, std::byte* pinned, std::uint8_t* out,
                    cudaStream_t stream) const = 0;
  // Threads that fetch a source fastest.
  virtual int num_readers() const = 0;
};

class MappedSource final : public TensorSource {
 public:
  // `weights` outlives the source.
  explicit MappedSource(const Weights& weights) : weights_(weights) {}
  void read(const TensorSlice& slice, std::byte* pinned, std::uint8_t* out,
            cudaStream_t stream) const override;
  int num_readers() const override;

 private:
  const Weights& weights_;
};

// Random weights of the distributions that python/gpt_oss_native/synthesize.py writes, each byte a
// function of seed, tensor and place, made on the device.
class SyntheticSource final : public TensorSource {
 public:
  SyntheticSource(const ModelConfig& config, std::uint64_t seed) : config_(config), seed_(seed) {}
  void read(const TensorSlice& slice, std::byte* pinned, std::uint8_t* out,
            cudaStream_t stream) const override;
  int num_readers() const override { return 2; }

 private:
  const ModelConfig& config_;
  const std::uint64_t seed_;
};

}  // namespace gptoss::cuda
