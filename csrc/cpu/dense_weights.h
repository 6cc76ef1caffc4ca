// The dense matrices as the CPU reads them: bf16 in the mapped file, or repacked at load to int8
// with a scale every 32 values. Two stay bf16 always: the router, which is small and decides, and
// the keys' matrix, whose error every score carries into an exponential (keeping it costs 1.3 % of
// the 20b's bytes a token and takes a quarter off the variance that int8 brings).
#pragma once

#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "cpu/kernel_table.h"
#include "model/weights.h"

namespace gptoss::cpu {

struct DenseMatrix {
  MatrixView<const bf16> bf16_weight;  // [rows][cols], always there
  PackedInt8 int8_weight{};            // data null: use bf16_weight
  const bf16* bias = nullptr;          // [rows] or null
  bool wants_float32 = false;          // activations: the router's, which decide

  std::int64_t rows() const { return bf16_weight.rows; }
  bool is_int8() const { return int8_weight.data != nullptr; }
  // As products read it; int8 is 8.5 bits a weight.
  std::int64_t row_bytes() const {
    return is_int8() ? bf16_weight.cols * 17 / 16
                     : bf16_weight.cols * static_cast<std::int64_t>(sizeof(bf16));
  }
};

// What a product reads: float32 rows, and the same rows quantised where a kernel wants that.
struct Activations {
  MatrixView<const float> values;
  Int8Activations int8{};
  Int15Activations int15{};
  Bf16Activations bf16{};

  Activations rows(Range range) const;
};

struct DenseLayer {
  DenseMatrix q, k, v, out, router;
};

struct DenseWeights {
  std::vector<DenseLayer> layers;
  DenseMatrix unembedding;
  AlignedBuffer packed;  // memory of all int8 matrices

  // `float32`: every product keeps its activations so.
  DenseWeights(const Weights& weights, bool int8, bool float32, const KernelTable& kernels,
               ThreadPool& pool);
};

// Rows `rows` of out = x * weight^T + bias, or the sum onto out.
void linear(const KernelTable& kernels, const DenseMatrix& weight, const Activations& x,
            Epilogue epilogue, MatrixView<float> out, Range rows, std::byte* scratch);

}  // namespace gptoss::cpu
