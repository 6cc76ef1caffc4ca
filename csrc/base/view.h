// Non-owning views. Strides are in elements. Plain aggregates, so that kernels compiled for one
// instruction set emit no out-of-line code for them.
#pragma once

#include <cstdint>

namespace gptoss {

template <typename T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  [[gnu::always_inline]] T* row(std::int64_t index) const { return data + index * stride; }
};

template <typename T>
[[gnu::always_inline]] inline MatrixView<T> matrix(T* data, std::int64_t rows, std::int64_t cols) {
  return {data, rows, cols, cols};
}

// Half-open range of rows, tiles or tasks: one thread's share of an op.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  [[gnu::always_inline]] std::int64_t size() const { return end - begin; }
};

template <typename T>
[[gnu::always_inline]] inline MatrixView<T> rows_of(const MatrixView<T>& view, Range rows) {
  return {view.row(rows.begin), rows.size(), view.cols, view.stride};
}

}  // namespace gptoss
