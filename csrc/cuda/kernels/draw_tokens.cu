// draw_tokens: from rows of logits to tokens, with the arithmetic of engine/sampler.h to the bit:
// softmax weights are integers (2^44 the likeliest), so that sums do not depend on their order.
// Bytes: a row of the published vocabulary is 804 KB, in L2 since it was just written; read once
// (greedy), twice (no filters, min-p, top-k) or three times (top-p). The kernels: the largest logit
// and the errors; weights summed in chunks of 256, or in bins; the tokens of the bin in which a
// limit falls, listed; the choice, one block a row.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/device/block_scan.h"
#include "cuda/device/draw_choice.h"
#include "cuda/device/draw_scan.h"
#include "cuda/kernels/draw_tokens.h"
#include "cuda/launch.h"
#include "cuda/ptx/dependent_launch.h"

namespace gptoss::cuda {
namespace {

constexpr int kScanThreads = 256;  // a warp a chunk
constexpr int kScanChunks = kScanThreads / kWarp;

// What a block of the scanning kernels works on: some of a row's chunks, a warp one at a time.
struct ScanPart {
  DrawWorkspace space;
  const DrawRow& row;
  DrawState& state;
  const float* logits;
  std::int64_t vocab;

  // Every kernel comes here first: what the kernel before it wrote can be read from then on.
  __device__ explicit ScanPart(const DrawTokensArgs& args)
      : space(args.workspace, args.vocab, args.max_rows),
        row(args.rows[blockIdx.y]),
        state(space.states[blockIdx.y]),
        logits(args.logits),
        vocab(args.vocab) {
    ptx::launch_dependents();
    ptx::wait_for_dependencies();
    logits += row.logit_row * vocab;
  }

  // f(chunk) for those of the warp.
  template <typename Body>
  __device__ void for_chunks(Body&& body) const {
    const std::int64_t stride = std::int64_t{gridDim.x} * kScanChunks;
    std::int64_t chunk = std::int64_t{blockIdx.x} * kScanChunks + threadIdx.x / kWarp;
    for (; chunk < space.num_chunks; chunk += stride) body(chunk);
  }
  __device__ DrawWeights weights() const {
    return {static_cast<double>(state.largest), row.inverse_temperature};
  }
};

// Whether all other blocks of the row have arrived, and their results are seen.
__device__ bool is_last_block(DrawState& state) {
  __shared__ bool is_last;
  __threadfence();  // this block's results, before its arrival
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&state.arrived, 1) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return false;
  __threadfence();  // the others' arrival, before their results
  return true;
}

constexpr int kEachBins = kDrawBins / kScanThreads;

// A sum for each bin, with room between those of different threads: theirs lie in different banks.
template <typename T>
struct BinSums {
  T sums[kDrawBins + kDrawBins / kEachBins];

  __device__ T& operator[](int bin) { return sums[bin + bin / kEachBins]; }
  // Before any is added to.
  __device__ void clear() {
    for (int i = threadIdx.x; i < kDrawBins; i += kScanThreads) (*this)[i] = 0;
    __syncthreads();
  }
};

// Finds the bin in which the limit falls. `limit` follows from what all measure together.
template <typename T, typename Limit>
__device__ void find_bin(BinSums<T>& sums, DrawState& state, const Limit& limit_of) {
  __shared__ BlockScan<kScanThreads> scan;
  std::uint64_t values[kEachBins];
  std::uint64_t sum = 0;
#pragma unroll
  for (int i = 0; i < kEachBins; ++i) {
    values[i] = sums[static_cast<int>(threadIdx.x) * kEachBins + i];
    sum += values[i];
  }
  const auto [before, total] = scan(sum);
  const std::uint64_t limit = limit_of(total);
  if (threadIdx.x == 0) {
    state.total = total;
    state.num_listed = 0;
    state.arrived = 0;
    if (total < limit) {  // fewer than k, but for the last bin
      state.bin = kDrawBins - 1;
      state.before = total;
    }
  }
  if (before >= limit || before + sum < limit) return;
  std::uint64_t reached = before;
  int bin = 0;
#pragma unroll
  for (int i = 0; i < kEachBins; ++i) {
    if (reached + values[i] < limit && bin == i) {
      reached += values[i];
      ++bin;
    }
  }
  state.bin = static_cast<int>(threadIdx.x) * kEachBins + bin;
  state.before = reached;
}

// The k largest tokens lie in no later bin than the k-th largest of the chunks' largest does.
__device__ void find_bin_of_chunks(const DrawRow& row, const DrawWorkspace& space,
                                   DrawState& state) {
  __shared__ BinSums<std::uint32_t> counts;
  counts.clear();
  const DrawBins bins(row, state.largest);
  const std::uint32_t* keys = space.keys(blockIdx.y);
  for (std::int64_t i = threadIdx.x; i < space.num_chunks; i += kScanThreads) {
    atomicAdd(&counts[bins.of(key_value(__ldcg(keys + i)))], 1u);
  }
  __syncthreads();  // all counts, before they are summed
  find_bin(counts, state, [&](std::uint64_t) { return static_cast<std::uint64_t>(row.top_k); });
}

// What the blocks of a row found together, by the last of them to arrive.
__device__ void finish_scan(const DrawTokensArgs& args, const DrawRow& row, DrawState& state) {
  const std::uint64_t best = __ldcg(&state.best);
  const std::uint32_t flags = __ldcg(&state.flags);
  std::int32_t outcome = 0;
  if (flags & kFoundNan) {
    outcome = static_cast<std::int32_t>(DrawError::kNan);
  } else if (flags & kFoundPlusInf) {
    outcome = static_cast<std::int32_t>(DrawError::kPlusInf);
  } else if (!(flags & kFoundFinite)) {
    outcome = static_cast<std::int32_t>(DrawError::kNothingFinite);
  } else if (!isfinite(key_value(static_cast<std::uint32_t>(best >> 32)))) {
    outcome = static_cast<std::int32_t>(DrawError::kNothingAllowed);
  }
  state.largest = key_value(static_cast<std::uint32_t>(best >> 32));
  state.is_done = outcome < 0 || row.inverse_temperature == 0;
  if (state.is_done) {
    publish(args, row, outcome < 0 ? outcome : static_cast<std::int32_t>(~best));
  }
  state.best = 0;
  state.flags = 0;
  state.arrived = 0;
}

// What the threads of a block found together, in its first warp.
__device__ Found found_by_block(Found mine) {
  __shared__ Found found[kScanChunks];
  const auto merge_lanes = [&] {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      mine.best = max(mine.best, __shfl_xor_sync(~0u, mine.best, step));
    }
    mine.flags = __reduce_or_sync(~0u, mine.flags);
  };
  merge_lanes();
  if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = mine;
  __syncthreads();  // every warp's, before they are read
  if (threadIdx.x >= kWarp) return mine;
  mine = threadIdx.x < kScanChunks ? found[threadIdx.x] : Found{};
  merge_lanes();
  return mine;
}

__global__ void __launch_bounds__(kScanThreads) scan_kernel(DrawTokensArgs args) {
  const ScanPart part(args);
  const DrawRow& row = part.row;
  DrawState& state = part.state;
  Found mine{};
  const bool all_allowed = row.allowed == nullptr;
  part.for_chunks([&](std::int64_t chunk) {
    const ChunkPart values(part.logits, args.vocab, chunk);
    const std::int64_t end = (chunk + 1) * kDrawChunk;
    std::uint32_t largest = all_allowed && end <= args.vocab ? scan_finite(values, mine) : 0;
    if (largest == 0) largest = scan_any(row, values, args.vocab, mine);
    largest = __reduce_max_sync(~0u, largest);
    if (threadIdx.x % kWarp == 0) part.space.keys(blockIdx.y)[chunk] = largest;
  });
  const Found found = found_by_block(mine);
  if (threadIdx.x == 0) {
    atomicMax(&state.best, found.best);
    atomicOr(&state.flags, found.flags);
  }
  if (!is_last_block(state)) return;
  if (threadIdx.x == 0) finish_scan(args, row, state);
  if (!bounded_by_chunks(row, part.space.num_chunks)) return;
  __syncthreads();  // the largest logit, before bins are counted from it
  find_bin_of_chunks(row, part.space, state);
}

__device__ __forceinline__ std::uint64_t warp_total(std::uint64_t sum) {
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

// Without a cut: the sums of the weights of each chunk.
__global__ void __launch_bounds__(kScanThreads) weights_kernel(DrawTokensArgs args) {
  const ScanPart part(args);
  if (part.state.is_done || cuts(part.row)) return;
  const DrawWeights weights = part.weights();
  const bool keeps_all = part.row.allowed == nullptr && DrawWeights::keeps_all(part.row);
  part.for_chunks([&](std::int64_t chunk) {
    std::uint64_t sum = 0;
    if (keeps_all && (chunk + 1) * kDrawChunk <= args.vocab) {
      const ChunkPart values(part.logits, args.vocab, chunk);
#pragma unroll
      for (const float logit : values.logits) sum += weights.bits(logit);
      sum -= ChunkPart::kEach * DrawWeights::kBitsOfZero;
    } else {
      const auto add = [&](std::int64_t token, float, std::uint64_t weight) {
        if (is_allowed(part.row, token)) sum += DrawWeights::kept(part.row, weight);
      };
      for_chunk(part.logits, args.vocab, chunk, weights, add);
    }
    sum = warp_total(sum);
    if (threadIdx.x % kWarp == 0) part.space.sums(blockIdx.y)[chunk] = sum;
  });
}

// With a cut that chunks do not bound: the bin in which it falls, by what each measures: tokens
// (top-k) or weights.
__global__ void __launch_bounds__(kScanThreads) bins_kernel(DrawTokensArgs args) {
  __shared__ BinSums<unsigned long long> block_sums;
  const ScanPart part(args);
  const DrawRow& row = part.row;
  DrawState& state = part.state;
  if (state.is_done || !cuts(row) || bounded_by_chunks(row, part.space.num_chunks)) return;
  block_sums.clear();
  const DrawWeights weights = part.weights();
  const DrawBins bins(row, state.largest);
  part.for_chunks([&](std::int64_t chunk) {
    const auto add = [&](std::int64_t token, float logit, std::uint64_t weight) {
      const int bin = bins.of(logit);
      if (bin == kDrawBins - 1 || !is_allowed(row, token)) return;
      add_shared(block_sums[bin], row.top_k > 0 ? 1 : weight);
    };
    for_chunk(part.logits, args.vocab, chunk, weights, add);
  });
  __syncthreads();  // the block's sums, before they are added to the row's
  unsigned long long* sums = part.space.bins(blockIdx.y);
  for (int i = threadIdx.x; i < kDrawBins; i += kScanThreads) {
    if (block_sums[i] != 0) atomicAdd(sums + i, block_sums[i]);
  }
  if (!is_last_block(state)) return;
  for (int i = threadIdx.x; i < kDrawBins; i += kScanThreads) {
    block_sums[i] = __ldcg(sums + i);
    sums[i] = 0;
  }
  __syncthreads();  // the row's sums, before they are summed
  find_bin(block_sums, state, [&](std::uint64_t total) {
    return row.top_k > 0 ? static_cast<std::uint64_t>(row.top_k) : top_p_limit(row, total);
  });
}

// Adds a lane's tokens of a chunk, a bit each, to the row's list.
__device__ void list_tokens(const ScanPart& part, std::int64_t chunk, std::uint32_t mine) {
  const int lane = threadIdx.x % kWarp;
  const int count = __popc(mine);
  int reached = count;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, reached, step);
    if (lane >= step) reached += other;
  }
  std::uint32_t place = 0;
  if (lane == kWarp - 1 && reached > 0) {
    place = atomicAdd(&part.state.num_listed, static_cast<std::uint32_t>(reached));
  }
  place = __shfl_sync(~0u, place, kWarp - 1) + static_cast<std::uint32_t>(reached - count);
  ListedToken* list = part.space.list(blockIdx.y);
  for (; mine != 0 && place < kDrawListed; mine &= mine - 1, ++place) {
    const std::int64_t token = chunk * kDrawChunk + (__ffs(mine) - 1) * kWarp + lane;
    list[place] = {static_cast<std::int32_t>(token), part.logits[token]};
  }
}

// With a cut: lists the tokens among which it lies (top-k: and those before), sums those before.
__global__ void __launch_bounds__(kScanThreads) list_kernel(DrawTokensArgs args) {
  const ScanPart part(args);
  const DrawRow& row = part.row;
  if (part.state.is_done || !cuts(row)) return;
  const DrawWeights weights = part.weights();
  const DrawBins bins(row, part.state.largest);
  const int last = part.state.bin;
  part.for_chunks([&](std::int64_t chunk) {
    std::uint64_t sum = 0;
    std::uint32_t mine = 0;  // listed, a bit for each of the lane's tokens
    const auto add = [&](std::int64_t token, float logit, std::uint64_t weight) {
      const int bin = bins.of(logit);
      if (bin > last || !is_allowed(row, token)) return;
      if (bin < last && row.top_k == 0) {
        sum += DrawWeights::kept(row, weight);
      } else {
        mine |= 1u << token % kDrawChunk / kWarp;
      }
    };
    if (bins.of(key_value(part.space.keys(blockIdx.y)[chunk])) <= last) {
      for_chunk(part.logits, args.vocab, chunk, weights, add);
      list_tokens(part, chunk, mine);
      sum = warp_total(sum);
    }
    if (threadIdx.x % kWarp == 0) {
      part.space.sums(blockIdx.y)[chunk] = sum;
      part.space.ties(blockIdx.y)[chunk] = 0;
    }
  });
}

__global__ void __launch_bounds__(kChoiceThreads) choice_kernel(DrawTokensArgs args) {
  extern __shared__ std::uint64_t shared_memory[];
  ptx::wait_for_dependencies();
  const DrawWorkspace space(args.workspace, args.vocab, args.max_rows);
  if (space.states[blockIdx.x].is_done) return;
  Choice(args, space, *reinterpret_cast<ChoiceShared*>(shared_memory)).run();
}

// Blocks of a row: as many as the device holds at once, whole rows together.
int scan_blocks(std::int64_t num_chunks, int num_rows) {
  constexpr std::int64_t kResident = 1024;
  const std::int64_t most = tiles_along(num_chunks, kScanChunks);
  return static_cast<int>(std::clamp<std::int64_t>(kResident / num_rows, 1, most));
}

}  // namespace

DrawKinds draw_kinds(const DrawRow& row, std::int64_t vocab) {
  DrawKinds kinds;
  kinds.random = row.inverse_temperature > 0;
  kinds.cut = kinds.random && cuts(row);
  kinds.whole = kinds.random && !kinds.cut;
  kinds.binned = kinds.cut && !bounded_by_chunks(row, DrawWorkspace::chunks_of(vocab));
  return kinds;
}

std::size_t draw_tokens_workspace_bytes(std::int64_t vocab, std::int64_t max_rows) {
  return static_cast<std::size_t>(max_rows) * DrawWorkspace::row_bytes(vocab);
}

void draw_tokens(const DrawTokensArgs& args, cudaStream_t stream) {
  const std::int64_t num_chunks = DrawWorkspace::chunks_of(args.vocab);
  LaunchShape shape{.blocks = scan_blocks(num_chunks, args.num_rows),
                    .groups = args.num_rows,
                    .threads = kScanThreads,
                    .dependence = Dependence::kFull};
  launch(scan_kernel, shape, args, "draw_tokens", stream);
  if (!args.kinds.random) return;
  shape.dependence = Dependence::kProgrammatic;
  if (args.kinds.whole) launch(weights_kernel, shape, args, "draw_tokens", stream);
  if (args.kinds.binned) {
    // Every block adds its bins to the row's: few blocks where there are many rows.
    LaunchShape few = shape;
    few.blocks = std::min(shape.blocks, std::max(8, 64));
    launch(bins_kernel, few, args, "draw_tokens", stream);
  }
  if (args.kinds.cut) launch(list_kernel, shape, args, "draw_tokens", stream);
  launch(choice_kernel,
         {.blocks = args.num_rows, .threads = kChoiceThreads, .smem = sizeof(ChoiceShared)}, args,
         "draw_tokens", stream);
}

}  // namespace gptoss::cuda
