#include "cpu/dense_weights.h"

namespace gptoss::cpu {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::int64_t kPackGrain = 64;  // rows a thread packs at a time

struct Placement {
  DenseMatrix* matrix;
  std::size_t offset;
};

}  // namespace

DenseWeights::DenseWeights(const Weights& weights, bool int8, bool float32,
                           const KernelTable& kernels, ThreadPool& pool) {
  for (const LayerWeights& w : weights.layers) {
    DenseLayer layer;
    layer.q = {.bf16_weight = w.q_weight, .bias = w.q_bias};
    layer.k = {.bf16_weight = w.k_weight, .bias = w.k_bias};
    layer.v = {.bf16_weight = w.v_weight, .bias = w.v_bias};
    layer.out = {.bf16_weight = w.out_weight, .bias = w.out_bias};
    layer.router = {.bf16_weight = w.router_weight, .bias = w.router_bias, .wants_float32 = true};
    for (DenseMatrix* matrix : {&layer.q, &layer.k, &layer.v, &layer.out}) {
      matrix->wants_float32 = float32;
    }
    layers.push_back(layer);
  }
  unembedding = {.bf16_weight = weights.unembedding, .wants_float32 = float32};
  if (!int8) return;

  std::vector<Placement> placements;
  std::size_t total = 0;
  const auto place = [&](DenseMatrix& matrix) {
    placements.push_back({&matrix, total});
    const std::size_t bytes = kernels.packed_int8_bytes(matrix.rows(), matrix.bf16_weight.cols);
    total += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  for (DenseLayer& layer : layers) {
    for (DenseMatrix* matrix : {&layer.q, &layer.v, &layer.out}) place(*matrix);
  }
  place(unembedding);
  packed = AlignedBuffer(total, "int8 dense weights");

  std::vector<WorkCounter> counters(placements.size());
  pool.run([&](Worker&) {
    for (std::size_t i = 0; i < placements.size(); ++i) {
      const DenseMatrix& matrix = *placements[i].matrix;
      for (;;) {
        const Range rows = counters[i].take(matrix.rows(), kPackGrain);
        if (rows.size() == 0) break;
        kernels.pack_int8(matrix.bf16_weight, rows,
                          packed.as<std::uint8_t>() + placements[i].offset);
      }
    }
  });
  for (const Placement& placement : placements) {
    DenseMatrix& matrix = *placement.matrix;
    matrix.int8_weight = {packed.as<std::uint8_t>() + placement.offset, matrix.rows(),
                          matrix.bf16_weight.cols};
  }
}

Activations Activations::rows(Range range) const {
  const std::int64_t count = range.size();
  const auto part = [&]<typename T>(T*& data, std::int64_t row_size) {
    if (data != nullptr) data += range.begin * row_size;
  };
  Activations x = *this;
  x.values.rows = x.int8.rows = x.int15.rows = x.bf16.rows = count;
  const std::int64_t cols = values.cols;
  const std::int64_t blocks = cols / kMxBlock;
  part(x.values.data, values.stride);
  part(x.int8.q, cols);
  part(x.int8.scales, blocks);
  part(x.int8.sums, blocks);
  part(x.int15.codes, cols);
  part(x.int15.scales, blocks);
  part(x.int15.sums, blocks);
  part(x.bf16.values, cols);
  part(x.bf16.bytes, 2 * cols);
  part(x.bf16.scales, blocks);
  part(x.bf16.sums, blocks);
  part(x.bf16.codes, cols);
  return x;
}

void linear(const KernelTable& kernels, const DenseMatrix& weight, const Activations& x,
            Epilogue epilogue, MatrixView<float> out, Range rows, std::byte* scratch) {
  if (rows.size() == 0) return;
  if (weight.is_int8()) {
    kernels.linear_int8({x.int15, x.bf16, weight.int8_weight, weight.bias, epilogue, out}, rows,
                        scratch);
    return;
  }
  const auto product = weight.wants_float32 ? kernels.linear_bf16_float32 : kernels.linear_bf16;
  product({x.values, weight.bf16_weight, weight.bias, epilogue, out}, rows, scratch);
}

}  // namespace gptoss::cpu
