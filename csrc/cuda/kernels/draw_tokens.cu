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
#include "cuda/kernels/draw_tokens.h"

namespace gptoss::cuda {
namespace {

constexpr int kScanThreads = 256;  // a warp a chunk
constexpr int kScanChunks = kScanThreads / kWarp;

// A row's part that a warp of the scanning kernels has.
struct ScanPart {
  std::int64_t chunk;
  const float* logits;

  __device__ ScanPart(const DrawTokensArgs& args, const DrawRow& row)
      : chunk(std::int64_t{blockIdx.x} * kScanChunks + threadIdx.x / kWarp),
        logits(args.logits + row.logit_row * args.vocab) {}
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

// Finds the bin in which the limit falls; values: of the thread's run of bins. `limit` follows from
// what all measure together.
template <typename Limit>
__device__ void find_bin(const std::uint64_t (&values)[kEachBins], DrawState& state,
                         const Limit& limit_of) {
  __shared__ BlockScan<kScanThreads> scan;
  std::uint64_t sum = 0;
#pragma unroll
  for (int i = 0; i < kEachBins; ++i) sum += values[i];
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
  __shared__ std::uint32_t counts[kDrawBins];
  for (int i = threadIdx.x; i < kDrawBins; i += kScanThreads) counts[i] = 0;
  __syncthreads();
  const DrawBins bins(row, state.largest);
  const std::uint32_t* keys = space.keys(blockIdx.y);
  for (std::int64_t i = threadIdx.x; i < space.num_chunks; i += kScanThreads) {
    atomicAdd(counts + bins.of(key_value(__ldcg(keys + i))), 1u);
  }
  __syncthreads();
  std::uint64_t mine[kEachBins];
#pragma unroll
  for (int i = 0; i < kEachBins; ++i) mine[i] = counts[threadIdx.x * kEachBins + i];
  find_bin(mine, state, [&](std::uint64_t) { return static_cast<std::uint64_t>(row.top_k); });
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

__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(DrawTokensArgs args, DrawWorkspace space) {
  const DrawRow& row = args.rows[blockIdx.y];
  DrawState& state = space.states[blockIdx.y];
  const ScanPart part(args, row);
  std::uint64_t best = 0;
  std::uint32_t flags = 0;
  for_chunk(part.logits, args.vocab, part.chunk, [&](std::int64_t token, float logit) {
    flags |= isnan(logit)   ? kFoundNan
             : isinf(logit) ? (logit > 0 ? kFoundPlusInf : 0)
                            : kFoundFinite;
    if (!is_allowed(row, token)) return;
    const std::uint64_t packed =
        std::uint64_t{logit_key(logit)} << 32 | static_cast<std::uint32_t>(~token);
    best = max(best, packed);
  });
  for (int step = kWarp / 2; step > 0; step /= 2) {
    best = max(best, __shfl_xor_sync(~0u, best, step));
    flags |= __shfl_xor_sync(~0u, flags, step);
  }
  if (threadIdx.x % kWarp == 0 && part.chunk < space.num_chunks) {
    space.keys(blockIdx.y)[part.chunk] = static_cast<std::uint32_t>(best >> 32);
    atomicMax(&state.best, best);
    atomicOr(&state.flags, flags);
  }
  if (!is_last_block(state)) return;
  if (threadIdx.x == 0) finish_scan(args, row, state);
  if (!bounded_by_chunks(row, space.num_chunks)) return;
  __syncthreads();  // the largest logit, before bins are counted from it
  find_bin_of_chunks(row, space, state);
}

__device__ __forceinline__ std::uint64_t warp_total(std::uint64_t sum) {
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

// Without a cut: the sums of the weights of each chunk.
__global__ void __launch_bounds__(kScanThreads)
    weights_kernel(DrawTokensArgs args, DrawWorkspace space) {
  const DrawRow& row = args.rows[blockIdx.y];
  const DrawState& state = space.states[blockIdx.y];
  if (state.is_done || cuts(row)) return;
  const ScanPart part(args, row);
  const DrawWeights weights{static_cast<double>(state.largest), row.inverse_temperature};
  std::uint64_t sum = 0;
  for_chunk(part.logits, args.vocab, part.chunk, [&](std::int64_t token, float logit) {
    if (is_allowed(row, token)) sum += weights.kept(row, logit);
  });
  sum = warp_total(sum);
  if (threadIdx.x % kWarp == 0 && part.chunk < space.num_chunks) {
    space.sums(blockIdx.y)[part.chunk] = sum;
  }
}

// With a cut that chunks do not bound: the bin in which it falls, by what each measures: tokens
// (top-k) or weights.
__global__ void __launch_bounds__(kScanThreads)
    bins_kernel(DrawTokensArgs args, DrawWorkspace space) {
  __shared__ unsigned long long block_sums[kDrawBins];
  const DrawRow& row = args.rows[blockIdx.y];
  DrawState& state = space.states[blockIdx.y];
  if (state.is_done || !cuts(row) || bounded_by_chunks(row, space.num_chunks)) return;
  for (int i = threadIdx.x; i < kDrawBins; i += kScanThreads) block_sums[i] = 0;
  __syncthreads();
  ScanPart part(args, row);
  const DrawWeights weights{static_cast<double>(state.largest), row.inverse_temperature};
  const DrawBins bins(row, state.largest);
  for (; part.chunk < space.num_chunks; part.chunk += std::int64_t{gridDim.x} * kScanChunks) {
    for_chunk(part.logits, args.vocab, part.chunk, [&](std::int64_t token, float logit) {
      const int bin = bins.of(logit);
      if (bin == kDrawBins - 1 || !is_allowed(row, token)) return;
      atomicAdd(block_sums + bin, row.top_k > 0 ? 1ull : weights.of(logit));
    });
  }
  __syncthreads();
  unsigned long long* sums = space.bins(blockIdx.y);
  for (int i = threadIdx.x; i < kDrawBins; i += kScanThreads) {
    if (block_sums[i] != 0) atomicAdd(sums + i, block_sums[i]);
  }
  if (!is_last_block(state)) return;
  std::uint64_t mine[kEachBins];
#pragma unroll
  for (int i = 0; i < kEachBins; ++i) {
    unsigned long long& sum = sums[threadIdx.x * kEachBins + i];
    mine[i] = __ldcg(&sum);
    sum = 0;
  }
  find_bin(mine, state, [&](std::uint64_t total) {
    return row.top_k > 0 ? static_cast<std::uint64_t>(row.top_k) : top_p_limit(row, total);
  });
}

// With a cut: lists the tokens among which it lies (top-k: and those before), sums those before.
__global__ void __launch_bounds__(kScanThreads)
    list_kernel(DrawTokensArgs args, DrawWorkspace space) {
  const DrawRow& row = args.rows[blockIdx.y];
  DrawState& state = space.states[blockIdx.y];
  if (state.is_done || !cuts(row)) return;
  const ScanPart part(args, row);
  if (part.chunk >= space.num_chunks) return;
  const int lane = threadIdx.x % kWarp;
  const DrawWeights weights{static_cast<double>(state.largest), row.inverse_temperature};
  const DrawBins bins(row, state.largest);
  const int last = state.bin;
  std::uint64_t sum = 0;
  std::uint32_t mine = 0;  // listed, a bit for each of the lane's tokens
  if (bins.of(key_value(space.keys(blockIdx.y)[part.chunk])) <= last) {
    for_chunk(part.logits, args.vocab, part.chunk, [&](std::int64_t token, float logit) {
      const int bin = bins.of(logit);
      if (bin > last || !is_allowed(row, token)) return;
      if (bin < last && row.top_k == 0) {
        sum += weights.kept(row, logit);
      } else {
        mine |= 1u << token % kDrawChunk / kWarp;
      }
    });
  }
  const int count = __popc(mine);
  int reached = count;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, reached, step);
    if (lane >= step) reached += other;
  }
  std::uint32_t place = 0;
  if (lane == kWarp - 1 && reached > 0) {
    place = atomicAdd(&state.num_listed, static_cast<std::uint32_t>(reached));
  }
  place = __shfl_sync(~0u, place, kWarp - 1) + static_cast<std::uint32_t>(reached - count);
  ListedToken* list = space.list(blockIdx.y);
  for (; mine != 0 && place < kDrawListed; mine &= mine - 1, ++place) {
    const std::int64_t token = part.chunk * kDrawChunk + (__ffs(mine) - 1) * kWarp + lane;
    list[place] = {static_cast<std::int32_t>(token), part.logits[token]};
  }
  sum = warp_total(sum);
  if (lane == 0) {
    space.sums(blockIdx.y)[part.chunk] = sum;
    space.ties(blockIdx.y)[part.chunk] = 0;
  }
}

__global__ void __launch_bounds__(kChoiceThreads)
    choice_kernel(DrawTokensArgs args, DrawWorkspace space) {
  extern __shared__ std::uint64_t shared_memory[];
  if (space.states[blockIdx.x].is_done) return;
  Choice(args, space, *reinterpret_cast<ChoiceShared*>(shared_memory)).run();
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
  const DrawWorkspace space(args.workspace, args.vocab, args.max_rows);
  const dim3 grid(static_cast<unsigned>((space.num_chunks + kScanChunks - 1) / kScanChunks),
                  static_cast<unsigned>(args.num_rows));
  scan_kernel<<<grid, kScanThreads, 0, stream>>>(args, space);
  check_launch("draw_tokens");
  if (!args.kinds.random) return;
  if (args.kinds.whole) {
    weights_kernel<<<grid, kScanThreads, 0, stream>>>(args, space);
    check_launch("draw_tokens");
  }
  if (args.kinds.binned) {
    // Every block adds its bins to the row's: few blocks where there are many rows.
    const unsigned blocks = std::min(grid.x, std::max(8u, 64u / grid.y));
    bins_kernel<<<dim3(blocks, grid.y), kScanThreads, 0, stream>>>(args, space);
    check_launch("draw_tokens");
  }
  if (args.kinds.cut) {
    list_kernel<<<grid, kScanThreads, 0, stream>>>(args, space);
    check_launch("draw_tokens");
  }
  constexpr auto kSharedBytes = static_cast<int>(sizeof(ChoiceShared));
  check(cudaFuncSetAttribute(choice_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kSharedBytes),
        "draw_tokens");
  choice_kernel<<<grid.y, kChoiceThreads, kSharedBytes, stream>>>(args, space);
  check_launch("draw_tokens");
}

}  // namespace gptoss::cuda
