// repack: weights from the checkpoint's order to tiles, once at load.
// Bytes: each weight read and written once from device memory, 27 GB for the 20b, some 10 ms; the
// copy from the host takes thirty times as long. One warp a 16 x 16 tile (dense) or a record of 16
// rows by 64 columns (MXFP4); writes are whole lines, reads whole sectors.
#include "cuda/device.h"
#include "cuda/kernels/repack.h"

namespace gptoss::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpsPerBlock = kThreads / kWarp;

// Lane l holds rows g = l / 4 and g + 8, columns 2 q and 2 q + 8 of q = l % 4.
__global__ void repack_dense_kernel(RepackDenseArgs args, std::int64_t k_tiles,
                                    std::int64_t num_tiles) {
  const std::int64_t tile = std::int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  if (tile >= num_tiles) return;
  const int lane = threadIdx.x % kWarp;
  const std::int64_t row = tile / k_tiles * kTileRows + lane / 4;
  const std::int64_t col = tile % k_tiles * kTileK + lane % 4 * 2;
  const auto pair = [&](std::int64_t r, std::int64_t c) -> std::uint32_t {
    const std::int64_t source = source_row(args.order, r);
    if (source >= args.rows) return 0;
    const std::uint16_t* from = args.source + source * args.cols;
    const std::uint32_t low = c < args.cols ? from[c] : 0;
    const std::uint32_t high = c + 1 < args.cols ? from[c + 1] : 0;
    return low | high << 16;
  };
  reinterpret_cast<uint4*>(args.out)[tile * kWarp + lane] =
      make_uint4(pair(row, col), pair(row + 8, col), pair(row, col + 8), pair(row + 8, col + 8));
}

// Where the bits of a code go, by the number of the pair: layout.h.
__device__ std::uint32_t spread(std::uint32_t code, int pair) {
  const std::uint32_t sign = code >> 3;
  const std::uint32_t magnitude = code & 7;
  switch (pair) {
    case 0:
      return sign << 15 | magnitude << 6;
    case 1:
      return sign << 12 | magnitude << 3;
    case 2:
      return sign << 9 | magnitude;
    default:
      return sign << 14 | (magnitude >> 2) << 13 | (magnitude & 3) << 10;
  }
}
__device__ std::uint32_t spread_byte(std::uint32_t byte, int pair) {
  return spread(byte & 15, pair) | spread(byte >> 4, pair) << 16;
}

__global__ void repack_mx_kernel(RepackMxArgs args, std::int64_t k_chunks,
                                 std::int64_t num_records) {
  const std::int64_t record = std::int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  if (record >= num_records) return;
  const int lane = threadIdx.x % kWarp;
  const std::int64_t first_row = record / k_chunks * kTileRows;
  const std::int64_t chunk = record % k_chunks;
  const std::int64_t blocks_per_row = args.cols / kMxBlock;
  std::uint8_t* out = args.out + record * kMxRecordBytes;

  const std::int64_t code_bytes = blocks_per_row * kMxBlockBytes;
  const std::uint8_t* rows[2];
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = source_row(args.order, first_row + lane / 4 + half * 8);
    rows[half] = args.blocks + row * code_bytes;
  }
  std::uint32_t words[4];
  for (int j = 0; j < 4; ++j) {
    std::uint32_t word = 0;
    for (int pair = 0; pair < 4; ++pair) {
      // Pairs 0 and 2 are of row g, 1 and 3 of row g + 8; 2 and 3 eight columns further.
      const std::int64_t at = chunk * (kMxChunk / 2) + 8 * j + lane % 4 + (pair >= 2 ? 4 : 0);
      if (at < code_bytes) word |= spread_byte(rows[pair % 2][at], pair);
    }
    words[j] = word;
  }
  reinterpret_cast<uint4*>(out)[lane] = make_uint4(words[0], words[1], words[2], words[3]);

  const std::int64_t row = source_row(args.order, first_row + lane / 4 + (lane % 4 >= 2 ? 8 : 0));
  const std::int64_t block = chunk * (kMxChunk / kMxBlock) + lane % 2;
  out[kMxCodeBytes + lane] =
      block < blocks_per_row ? args.scales[row * blocks_per_row + block] : std::uint8_t{127};
}

__global__ void reorder_vector_kernel(const std::uint16_t* source, std::int64_t size,
                                      RowOrder order, std::uint16_t* out) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row < size) out[row] = source[source_row(order, row)];
}

__global__ void router_by_channel_kernel(const std::uint16_t* source, std::int64_t num_experts,
                                         std::int64_t hidden, std::uint16_t* out) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= num_experts * hidden) return;
  const std::int64_t expert = index / 16 % num_experts;
  const std::int64_t channel = index / (16 * num_experts) * 16 + index % 16;
  out[index] = source[expert * hidden + channel];
}

unsigned blocks_for(std::int64_t count, std::int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace

void repack_dense(const RepackDenseArgs& args, cudaStream_t stream) {
  GPTOSS_REQUIRE(InvalidArgument, args.order != RowOrder::kRope || args.rows % 64 == 0,
                 "[repack] expected whole heads of 64 rows, got ", args.rows, " rows");
  const std::int64_t k_tiles = tiles_along(args.cols, kTileK);
  const std::int64_t num_tiles = tiles_along(args.rows, kTileRows) * k_tiles;
  repack_dense_kernel<<<blocks_for(num_tiles, kWarpsPerBlock), kThreads, 0, stream>>>(args, k_tiles,
                                                                                      num_tiles);
  check_launch("repack");
}

void repack_mx(const RepackMxArgs& args, cudaStream_t stream) {
  GPTOSS_REQUIRE(InvalidArgument, args.rows % kTileRows == 0 && args.cols % kMxBlock == 0,
                 "[repack] expected rows in tiles of ", kTileRows, " and columns in blocks of ",
                 kMxBlock, ", got [", args.rows, "][", args.cols, ']');
  const std::int64_t k_chunks = tiles_along(args.cols, kMxChunk);
  const std::int64_t num_records = args.rows / kTileRows * k_chunks;
  repack_mx_kernel<<<blocks_for(num_records, kWarpsPerBlock), kThreads, 0, stream>>>(args, k_chunks,
                                                                                     num_records);
  check_launch("repack");
}

void reorder_vector(const std::uint16_t* source, std::int64_t size, RowOrder order,
                    std::uint16_t* out, cudaStream_t stream) {
  reorder_vector_kernel<<<blocks_for(size, kThreads), kThreads, 0, stream>>>(source, size, order,
                                                                             out);
  check_launch("repack");
}

void router_by_channel(const std::uint16_t* source, std::int64_t num_experts, std::int64_t hidden,
                       std::uint16_t* out, cudaStream_t stream) {
  router_by_channel_kernel<<<blocks_for(num_experts * hidden, kThreads), kThreads, 0, stream>>>(
      source, num_experts, hidden, out);
  check_launch("repack");
}

}  // namespace gptoss::cuda
