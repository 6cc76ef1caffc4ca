// draw_tokens: from rows of logits to tokens, with the arithmetic of engine/sampler.h to the bit:
// softmax weights are integers (2^44 the likeliest), so that sums do not depend on their order.
// Bytes: a row of the published vocabulary is 804 KB, in L2 since it was just written; read once
// (greedy), twice (no filters). Three kernels: the largest logit and the errors; weights summed in
// chunks of 256; the choice, one block a row, which only reads chunks that the filters can reach.
#include "cuda/device.h"
#include "cuda/device/block_scan.h"
#include "cuda/device/draw_row.h"
#include "cuda/kernels/draw_tokens.h"

namespace gptoss::cuda {
namespace {

constexpr int kScanThreads = 256;  // a warp a chunk
constexpr int kScanChunks = kScanThreads / kWarp;
constexpr int kChoiceThreads = 512;

// f(token, logit) for the lane's tokens of a chunk; all are loaded before the first is looked at.
template <typename Body>
__device__ __forceinline__ void for_chunk(const float* logits, std::int64_t vocab,
                                          std::int64_t chunk, Body&& body) {
  constexpr int kEach = static_cast<int>(kDrawChunk) / kWarp;
  const std::int64_t first = chunk * kDrawChunk + threadIdx.x % kWarp;
  float values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const std::int64_t token = first + i * kWarp;
    values[i] = token < vocab ? logits[token] : 0;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const std::int64_t token = first + i * kWarp;
    if (token < vocab) body(token, values[i]);
  }
}

__device__ void publish(const DrawTokensArgs& args, const DrawRow& row, std::int32_t token) {
  args.tokens[row.slot] = token < 0 ? 0 : token;
  const std::uint64_t result = std::uint64_t{row.tag} << 32 | static_cast<std::uint32_t>(token);
  // One store of 8 bytes, which the host sees whole.
  *reinterpret_cast<volatile std::uint64_t*>(args.results + row.slot) = result;
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
  state.total = 0;
}

__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(DrawTokensArgs args, DrawWorkspace space) {
  const DrawRow& row = args.rows[blockIdx.y];
  DrawState& state = space.states[blockIdx.y];
  const float* logits = args.logits + row.logit_row * args.vocab;
  const std::int64_t chunk = std::int64_t{blockIdx.x} * kScanChunks + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  std::uint64_t best = 0;
  std::uint32_t flags = 0;
  for_chunk(logits, args.vocab, chunk, [&](std::int64_t token, float logit) {
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
  if (lane == 0 && chunk < space.num_chunks) {
    space.keys(blockIdx.y)[chunk] = static_cast<std::uint32_t>(best >> 32);
    atomicMax(&state.best, best);
    atomicOr(&state.flags, flags);
  }
  __threadfence();  // before the arrival is counted
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(&state.arrived, 1) == gridDim.x - 1) {
    __threadfence();  // the others' results are seen from here on
    finish_scan(args, row, state);
  }
}

// Sums of the weights of each chunk, and of all.
__global__ void __launch_bounds__(kScanThreads)
    weights_kernel(DrawTokensArgs args, DrawWorkspace space) {
  const DrawRow& row = args.rows[blockIdx.y];
  DrawState& state = space.states[blockIdx.y];
  if (state.is_done || !needs_all_weights(row)) return;
  const float* logits = args.logits + row.logit_row * args.vocab;
  const std::int64_t chunk = std::int64_t{blockIdx.x} * kScanChunks + threadIdx.x / kWarp;
  if (chunk >= space.num_chunks) return;
  const int lane = threadIdx.x % kWarp;
  const DrawWeights weights{static_cast<double>(state.largest), row.inverse_temperature};
  std::uint64_t sum = 0;
  for_chunk(logits, args.vocab, chunk, [&](std::int64_t token, float logit) {
    if (is_allowed(row, token)) sum += weights.of(logit);
  });
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane != 0) return;
  space.sums(blockIdx.y)[chunk] = sum;
  atomicAdd(&state.total, static_cast<unsigned long long>(sum));
}

struct ChoiceShared {
  Histograms<kChoiceThreads> histograms;
  BlockScan<kChoiceThreads> scan;
  std::uint64_t number;
  std::int64_t chunk;
};

// One row's choice, by a block.
class Choice {
 public:
  __device__ Choice(const DrawTokensArgs& args, const DrawWorkspace& space, ChoiceShared& shared)
      : args_(args),
        row_(args.rows[blockIdx.x]),
        state_(space.states[blockIdx.x]),
        num_chunks_(space.num_chunks),
        keys_(space.keys(blockIdx.x)),
        sums_(space.sums(blockIdx.x)),
        ties_(space.ties(blockIdx.x)),
        logits_(args.logits + row_.logit_row * args.vocab),
        weights_{static_cast<double>(state_.largest), row_.inverse_temperature},
        shared_(shared) {}

  __device__ void run() {
    if (has_filters(row_)) {
      find_filters();
      sum_kept();
    }
    draw();
  }

 private:
  // f(token, logit, key) for every allowed token of a chunk whose largest key is `least` or more,
  // its own key, too. A warp a chunk.
  template <typename Body>
  __device__ void visit(std::uint32_t least, Body&& body) {
    for (std::int64_t chunk = threadIdx.x / kWarp; chunk < num_chunks_;
         chunk += kChoiceThreads / kWarp) {
      if (keys_[chunk] < least) continue;
      for_chunk(logits_, args_.vocab, chunk, [&](std::int64_t token, float logit) {
        const std::uint32_t key = logit_key(logit);
        if (key >= least && is_allowed(row_, token)) body(token, logit, key);
      });
    }
  }

  // top-k, top-p: keys above cut_ stay, and the first num_ties_ tokens of those equal to it.
  __device__ void find_filters() {
    std::uint64_t total = state_.total;
    if (row_.top_k > 0) total = find_top_k();
    if (row_.top_p >= 1) return;
    const double limit_real = ceil(row_.top_p * static_cast<double>(total));
    const std::uint64_t limit = static_cast<std::uint64_t>(fmax(limit_real, 1.0));
    // A token lighter than this share weighs, with all others so light, less than 1 - top_p.
    const double share = (1 - row_.top_p) * static_cast<double>(total);
    const double lightest = row_.top_k > 0 ? 0 : 0.99 * share / static_cast<double>(args_.vocab);
    const std::uint64_t tied_weight = weights_.of(key_value(cut_));
    const DrawCut cut = shared_.histograms.find(limit, [&](auto&& add) {
      // Ties at the cut of top-k count as many times as they stay.
      if (has_cut_ && threadIdx.x == 0) add(cut_, [&] { return num_ties_ * tied_weight; });
      visit_from(lightest, [&](std::int64_t, float logit, std::uint32_t key) {
        if (!has_cut_ || key > cut_) add(key, [&] { return weights_.of(logit); });
      });
    });
    const std::uint64_t weight = weights_.of(key_value(cut.key));
    std::uint64_t ties = ~std::uint64_t{0};
    if (weight > 0 && cut.before < limit) ties = (limit - cut.before + weight - 1) / weight;
    num_ties_ = has_cut_ && cut.key == cut_ ? min(num_ties_, ties) : ties;
    cut_ = cut.key;
    has_cut_ = true;
  }

  // The weight of the k largest together.
  __device__ std::uint64_t find_top_k() {
    const auto k = static_cast<std::uint64_t>(row_.top_k);
    // The k-th largest of the chunks' largest is a lower bound of the k-th largest of all.
    std::uint32_t bound = 0;
    if (row_.top_k <= num_chunks_) {
      bound = shared_.histograms
                  .find(k,
                        [&](auto&& add) {
                          for (std::int64_t i = threadIdx.x; i < num_chunks_; i += kChoiceThreads) {
                            add(keys_[i], [] { return std::uint64_t{1}; });
                          }
                        })
                  .key;
    }
    const DrawCut cut = shared_.histograms.find(k, [&](auto&& add) {
      visit(bound, [&](std::int64_t, float, std::uint32_t key) {
        add(key, [] { return std::uint64_t{1}; });
      });
    });
    cut_ = cut.key;
    has_cut_ = true;
    num_ties_ = k - cut.before;
    std::uint64_t mine = 0;
    std::uint64_t tied = 0;
    visit(cut_, [&](std::int64_t, float logit, std::uint32_t key) {
      if (key > cut_) {
        mine += weights_.of(logit);
      } else {
        ++tied;
      }
    });
    tied = shared_.scan(tied).total;
    num_ties_ = min(num_ties_, tied);
    return shared_.scan(mine).total + num_ties_ * weights_.of(key_value(cut_));
  }

  // Chunks that hold a weight of `lightest` or more.
  template <typename Body>
  __device__ void visit_from(double lightest, Body&& body) {
    for (std::int64_t chunk = threadIdx.x / kWarp; chunk < num_chunks_;
         chunk += kChoiceThreads / kWarp) {
      if (has_cut_ && keys_[chunk] < cut_) continue;
      const auto heaviest = static_cast<double>(weights_.of(key_value(keys_[chunk])));
      if (heaviest < lightest) continue;
      for_chunk(logits_, args_.vocab, chunk, [&](std::int64_t token, float logit) {
        if (is_allowed(row_, token)) body(token, logit, logit_key(logit));
      });
    }
  }

  // What a token weighs in the draw, ties apart.
  __device__ std::uint64_t kept_weight(float logit, std::uint32_t key) const {
    if (has_cut_ && key < cut_) return 0;
    const std::uint64_t weight = weights_.of(logit);
    return static_cast<double>(weight) < row_.min_weight ? 0 : weight;
  }

  // Per chunk, the sum of what is kept above the cut, and the number of ties.
  __device__ void sum_kept() {
    const int lane = threadIdx.x % kWarp;
    for (std::int64_t chunk = threadIdx.x / kWarp; chunk < num_chunks_;
         chunk += kChoiceThreads / kWarp) {
      std::uint64_t sum = 0;
      std::uint32_t ties = 0;
      const bool is_seen =
          has_cut_ ? keys_[chunk] >= cut_ : kept_weight(key_value(keys_[chunk]), keys_[chunk]) > 0;
      if (is_seen) {
        for_chunk(logits_, args_.vocab, chunk, [&](std::int64_t token, float logit) {
          if (!is_allowed(row_, token)) return;
          const std::uint32_t key = logit_key(logit);
          if (has_cut_ && key == cut_) {
            ++ties;
          } else {
            sum += kept_weight(logit, key);
          }
        });
        for (int step = kWarp / 2; step > 0; step /= 2) {
          sum += __shfl_xor_sync(~0u, sum, step);
          ties += __shfl_xor_sync(~0u, ties, step);
        }
      }
      if (lane == 0) {
        sums_[chunk] = sum;
        ties_[chunk] = ties;
      }
    }
    __syncthreads();
    if (!has_cut_) return;
    // The first ties, by token, are kept: thread t has the t-th run of chunks.
    const std::uint64_t weight = kept_weight(key_value(cut_), cut_);
    const auto [begin, end] = my_chunks();
    std::uint64_t mine = 0;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) mine += ties_[chunk];
    std::uint64_t before = shared_.scan(mine).before;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      const std::uint64_t left = num_ties_ > before ? num_ties_ - before : 0;
      before += ties_[chunk];
      ties_[chunk] = static_cast<std::uint32_t>(min(std::uint64_t{ties_[chunk]}, left));
      sums_[chunk] += ties_[chunk] * weight;
    }
    __syncthreads();
  }

  struct Chunks {
    std::int64_t begin, end;
  };
  __device__ Chunks my_chunks() const {
    const std::int64_t each = (num_chunks_ + kChoiceThreads - 1) / kChoiceThreads;
    const std::int64_t begin = min(threadIdx.x * each, num_chunks_);
    return {begin, min(begin + each, num_chunks_)};
  }

  // The chunk in which the random number falls, then the token in it.
  __device__ void draw() {
    const auto [begin, end] = my_chunks();
    std::uint64_t mine = 0;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) mine += sums_[chunk];
    const auto [before, total] = shared_.scan(mine);
    std::uint64_t left = __umul64hi(row_.random, total);
    if (left >= before && left < before + mine) {
      left -= before;
      std::int64_t chunk = begin;
      while (left >= sums_[chunk]) left -= sums_[chunk++];
      shared_.chunk = chunk;
      shared_.number = left;
    }
    __syncthreads();
    draw_in_chunk(shared_.chunk, shared_.number);
  }

  __device__ void draw_in_chunk(std::int64_t chunk, std::uint64_t number) {
    const std::int64_t token = chunk * kDrawChunk + threadIdx.x;
    const bool mine_to_see =
        threadIdx.x < kDrawChunk && token < args_.vocab && is_allowed(row_, token);
    const float logit = mine_to_see ? logits_[token] : 0;
    const std::uint32_t key = mine_to_see ? logit_key(logit) : 0;
    const bool is_tie = mine_to_see && has_cut_ && key == cut_;
    const std::uint64_t ties_before = shared_.scan(is_tie ? 1 : 0).before;
    std::uint64_t weight = 0;
    if (mine_to_see && !(is_tie && ties_before >= ties_[chunk])) {
      weight = has_filters(row_) ? kept_weight(logit, key) : weights_.of(logit);
    }
    const std::uint64_t before = shared_.scan(weight).before;
    if (number >= before && number < before + weight) {
      publish(args_, row_, static_cast<std::int32_t>(token));
    }
  }

  const DrawTokensArgs& args_;
  const DrawRow& row_;
  const DrawState& state_;
  const std::int64_t num_chunks_;
  const std::uint32_t* keys_;
  std::uint64_t* sums_;
  std::uint32_t* ties_;
  const float* logits_;
  const DrawWeights weights_;
  ChoiceShared& shared_;
  bool has_cut_ = false;
  std::uint32_t cut_ = 0;
  std::uint64_t num_ties_ = 0;
};

__global__ void __launch_bounds__(kChoiceThreads)
    choice_kernel(DrawTokensArgs args, DrawWorkspace space) {
  extern __shared__ std::uint64_t shared_memory[];
  if (space.states[blockIdx.x].is_done) return;
  Choice(args, space, *reinterpret_cast<ChoiceShared*>(shared_memory)).run();
}

}  // namespace

std::size_t draw_tokens_workspace_bytes(std::int64_t vocab, std::int64_t max_rows) {
  return static_cast<std::size_t>(max_rows) * DrawWorkspace::row_bytes(vocab);
}

void draw_tokens(const DrawTokensArgs& args, cudaStream_t stream) {
  const DrawWorkspace space(args.workspace, args.vocab, args.max_rows);
  const dim3 grid(static_cast<unsigned>((space.num_chunks + kScanChunks - 1) / kScanChunks),
                  static_cast<unsigned>(args.num_rows));
  scan_kernel<<<grid, kScanThreads, 0, stream>>>(args, space);
  check_launch("draw_tokens");
  if (args.all_greedy) return;
  weights_kernel<<<grid, kScanThreads, 0, stream>>>(args, space);
  check_launch("draw_tokens");
  constexpr auto kSharedBytes = static_cast<int>(sizeof(ChoiceShared));
  check(cudaFuncSetAttribute(choice_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kSharedBytes),
        "draw_tokens");
  choice_kernel<<<grid.y, kChoiceThreads, kSharedBytes, stream>>>(args, space);
  check_launch("draw_tokens");
}

}  // namespace gptoss::cuda
