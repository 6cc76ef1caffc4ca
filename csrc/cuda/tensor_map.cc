#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <span>

#include "cuda/device.h"

namespace gptoss::cuda {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// Through the runtime, so that the library imports where there is no driver.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    constexpr unsigned int kSince = 12000;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, kSince,
                                           cudaEnableDefault, &found),
          "tensor_map");
    GPTOSS_REQUIRE(DeviceError, found == cudaDriverEntryPointSuccess && entry != nullptr,
                   "[tensor_map] expected a driver with cuTensorMapEncodeTiled, found none; "
                   "install driver 580 or newer");
    return reinterpret_cast<EncodeTiled>(entry);
  }();
  return function;
}

// `strides` in bytes, of the second dimension and on.
CUtensorMap encode(CUtensorMapDataType type, const void* data, std::span<const cuuint64_t> sizes,
                   std::span<const cuuint64_t> strides, std::span<const cuuint32_t> box,
                   CUtensorMapSwizzle swizzle) {
  constexpr cuuint32_t kOnes[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode_tiled()(
      &map, type, static_cast<cuuint32_t>(sizes.size()), const_cast<void*>(data), sizes.data(),
      strides.data(), box.data(), kOnes, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  GPTOSS_REQUIRE(DeviceError, status == CUDA_SUCCESS,
                 "[tensor_map] expected a matrix that the copy engine takes, got one of ", sizes[1],
                 " rows of ", strides[0], " bytes and boxes of ", box[0], " x ", box[1],
                 " (driver error ", static_cast<int>(status), ")");
  return map;
}

}  // namespace

CUtensorMap token_tensor_map(const void* data, std::int64_t rows, std::int64_t cols,
                             std::uint32_t box_rows) {
  constexpr cuuint32_t kBoxCols = 64;  // 128 bytes, the width of the swizzle
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(cols) * 2};
  const cuuint32_t box[] = {kBoxCols, box_rows};
  return encode(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, data, sizes, strides, box,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap token_chunks_tensor_map(const void* data, std::int64_t rows, std::int64_t cols,
                                    std::uint32_t box_rows, std::uint32_t box_chunks) {
  constexpr cuuint32_t kBoxCols = 64;  // 128 bytes, the width of the swizzle
  const cuuint64_t sizes[] = {kBoxCols, static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(cols) / kBoxCols};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(cols) * 2, kBoxCols * 2};
  const cuuint32_t box[] = {kBoxCols, box_rows, box_chunks};
  return encode(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, data, sizes, strides, box,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap weight_tensor_map(const DenseTiles& weight, std::uint32_t box_tiles) {
  constexpr cuuint64_t kTileWords = kDenseTileBytes / 8;
  const cuuint64_t words = static_cast<cuuint64_t>(weight.k_tiles()) * kTileWords;
  const cuuint64_t sizes[] = {words, static_cast<cuuint64_t>(weight.row_tiles())};
  const cuuint64_t strides[] = {words * 8};
  const cuuint32_t box[] = {4 * kTileWords, box_tiles};
  return encode(CU_TENSOR_MAP_DATA_TYPE_FLOAT64, weight.data, sizes, strides, box,
                CU_TENSOR_MAP_SWIZZLE_NONE);
}

CUtensorMap weight_tensor_map(const MxTiles& weight, std::uint32_t box_tiles,
                              std::uint32_t box_chunks) {
  const cuuint64_t chunks = static_cast<cuuint64_t>(weight.k_chunks());
  const cuuint64_t sizes[] = {kMxRecordBytes / 4, chunks,
                              static_cast<cuuint64_t>(weight.num_experts * weight.row_tiles())};
  const cuuint64_t strides[] = {kMxRecordBytes, chunks * kMxRecordBytes};
  const cuuint32_t box[] = {kMxRecordBytes / 4, box_chunks, box_tiles};
  return encode(CU_TENSOR_MAP_DATA_TYPE_INT32, weight.data, sizes, strides, box,
                CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace gptoss::cuda
