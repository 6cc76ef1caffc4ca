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

// Puts a byte's two codes, the elements of a pair, where layout.h says.
template <int kWord, int kPair>
__device__ __forceinline__ void place_codes(std::uint32_t (&words)[2], std::uint32_t byte) {
  constexpr int kBits[4] = {6, 7, 8, 15};  // of kMxCode, from a code's lowest bit
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const MxBit at = mx_bit(kWord, kPair, kBits[i % 4] + i / 4 * 16);
    words[at.word] |= (byte >> i & 1) << at.bit;
  }
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
  // Pairs 0 and 2 are of row g, 1 and 3 of row g + 8; 2 and 3 eight columns further.
  const auto byte_of = [&](int word, int pair) -> std::uint32_t {
    const std::int64_t at = chunk * (kMxChunk / 2) + 8 * word + lane % 4 + (pair >= 2 ? 4 : 0);
    return at < code_bytes ? rows[pair % 2][at] : 0;
  };
  std::uint32_t words[2][2] = {};
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    place_codes<0, 0>(words[block], byte_of(2 * block, 0));
    place_codes<0, 1>(words[block], byte_of(2 * block, 1));
    place_codes<0, 2>(words[block], byte_of(2 * block, 2));
    place_codes<0, 3>(words[block], byte_of(2 * block, 3));
    place_codes<1, 0>(words[block], byte_of(2 * block + 1, 0));
    place_codes<1, 1>(words[block], byte_of(2 * block + 1, 1));
    place_codes<1, 2>(words[block], byte_of(2 * block + 1, 2));
    place_codes<1, 3>(words[block], byte_of(2 * block + 1, 3));
  }
  reinterpret_cast<uint4*>(out)[lane] =
      make_uint4(words[0][0], words[0][1], words[1][0], words[1][1]);

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
