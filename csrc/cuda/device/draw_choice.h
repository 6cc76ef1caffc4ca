// The choice of one row's token by a block, once the kernels before it have summed what they can:
// filters first, then the token in whose weight the random number falls.
//
// Where top-k or top-p cut, tokens lie in bins by their distance from the largest, and the bin in
// which the limit falls is known. Its tokens (top-k: and those before it) are listed, a few hundred
// as a rule, and the cut is found among them. Rows that put more than kDrawListed there, such as
// equal logits, are read again as a whole.
#pragma once

#include <cstdint>

#include "cuda/device/block_scan.h"
#include "cuda/device/draw_row.h"

namespace gptoss::cuda {

constexpr int kChoiceThreads = 512;

struct ChoiceShared {
  Histograms<kChoiceThreads> histograms;
  BlockScan<kChoiceThreads> scan;
  ListedToken list[kDrawListed];
  std::uint32_t least;  // of the list's keys
  std::uint32_t most;
  std::uint64_t number;
  std::int64_t chunk;
};

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
        shared_(shared) {
    if (!cuts(row_) || state_.num_listed > kDrawListed) return;
    has_list_ = true;
    num_listed_ = static_cast<int>(state_.num_listed);
    fetch_list(space.list(blockIdx.x));
  }

  __device__ void run() {
    if (cuts(row_)) {
      find_cut();
      if (has_list_) {
        sum_list();
      } else {
        sum_chunks();
      }
      keep_first_ties();
    }
    draw();
  }

 private:
  __device__ void fetch_list(const ListedToken* list) {
    if (threadIdx.x == 0) {
      shared_.least = ~0u;
      shared_.most = 0;
    }
    __syncthreads();  // the bounds, before they are narrowed
    std::uint32_t least = ~0u;
    std::uint32_t most = 0;
    for (int i = threadIdx.x; i < num_listed_; i += kChoiceThreads) {
      shared_.list[i] = list[i];
      least = min(least, logit_key(shared_.list[i].logit));
      most = max(most, logit_key(shared_.list[i].logit));
    }
    least = __reduce_min_sync(~0u, least);
    most = __reduce_max_sync(~0u, most);
    if (threadIdx.x % kWarp == 0) {
      atomicMin(&shared_.least, least);
      atomicMax(&shared_.most, most);
    }
    __syncthreads();  // the list, before it is read
    if (num_listed_ > 0) shared_bits_ = SharedBits::of(shared_.least, shared_.most);
  }

  // f(token, logit, key) for every allowed token whose key is `least` or more, others may come,
  // too. A warp a chunk.
  template <typename Body>
  __device__ void visit(std::uint32_t least, Body&& body) {
    if (has_list_) {
      for (int i = threadIdx.x; i < num_listed_; i += kChoiceThreads) {
        const ListedToken item = shared_.list[i];
        body(item.token, item.logit, logit_key(item.logit));
      }
      return;
    }
    for (std::int64_t chunk = threadIdx.x / kWarp; chunk < num_chunks_;
         chunk += kChoiceThreads / kWarp) {
      if (keys_[chunk] < least) continue;
      for_chunk(logits_, args_.vocab, chunk, [&](std::int64_t token, float logit) {
        if (is_allowed(row_, token)) body(token, logit, logit_key(logit));
      });
    }
  }

  template <typename Visit>
  __device__ DrawCut cut_at(std::uint64_t limit, Visit&& visit) {
    return shared_.histograms.find(
        limit, has_list_ ? HistogramCopies::kOne : HistogramCopies::kOneAWarp, shared_bits_, visit);
  }

  // top-k, top-p: keys above cut_ stay, and the first num_ties_ tokens of those equal to it.
  __device__ void find_cut() {
    std::uint64_t total = state_.total;
    std::uint64_t before = 0;  // what weighs before the list
    if (row_.top_k > 0) {
      total = find_top_k();
    } else if (has_list_) {
      before = state_.before;
    }
    if (row_.top_p >= 1) return;
    const std::uint64_t limit = top_p_limit(row_, total) - before;
    const std::uint64_t tied_weight = weights_.of(key_value(cut_));
    const DrawCut cut = cut_at(limit, [&](auto&& add) {
      // Ties at the cut of top-k count as many times as they stay.
      if (has_cut_ && threadIdx.x == 0) add(cut_, [&] { return num_ties_ * tied_weight; });
      visit(has_cut_ ? cut_ : 0, [&](std::int64_t, float logit, std::uint32_t key) {
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
    if (!has_list_ && row_.top_k <= num_chunks_) {
      const auto visit_chunks = [&](auto&& add) {
        for (std::int64_t i = threadIdx.x; i < num_chunks_; i += kChoiceThreads) {
          add(keys_[i], [] { return std::uint64_t{1}; });
        }
      };
      bound = cut_at(k, visit_chunks).key;
    }
    const DrawCut cut = cut_at(k, [&](auto&& add) {
      visit(bound, [&](std::int64_t, float, std::uint32_t key) {
        if (key >= bound) add(key, [] { return std::uint64_t{1}; });
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
      } else if (key == cut_) {
        ++tied;
      }
    });
    tied = shared_.scan(tied).total;
    num_ties_ = min(num_ties_, tied);
    return shared_.scan(mine).total + num_ties_ * weights_.of(key_value(cut_));
  }

  // Per chunk, the sum of what is kept above the cut, and the number of ties: from the list, to
  // what lies before it.
  __device__ void sum_list() {
    for (int i = threadIdx.x; i < num_listed_; i += kChoiceThreads) {
      const ListedToken item = shared_.list[i];
      const std::uint32_t key = logit_key(item.logit);
      const std::int64_t chunk = item.token / kDrawChunk;
      if (key == cut_) {
        atomicAdd(ties_ + chunk, 1u);
      } else if (key > cut_) {
        atomicAdd(reinterpret_cast<unsigned long long*>(sums_ + chunk),
                  static_cast<unsigned long long>(weights_.kept(row_, item.logit)));
      }
    }
    __threadfence_block();
    __syncthreads();  // the sums, before they are read
  }

  // The same from the row itself.
  __device__ void sum_chunks() {
    const int lane = threadIdx.x % kWarp;
    for (std::int64_t chunk = threadIdx.x / kWarp; chunk < num_chunks_;
         chunk += kChoiceThreads / kWarp) {
      std::uint64_t sum = 0;
      std::uint32_t ties = 0;
      if (keys_[chunk] >= cut_) {
        const auto add = [&](std::int64_t token, float logit, std::uint64_t weight) {
          if (!is_allowed(row_, token)) return;
          const std::uint32_t key = logit_key(logit);
          if (key == cut_) {
            ++ties;
          } else if (key > cut_) {
            sum += DrawWeights::kept(row_, weight);
          }
        };
        for_chunk(logits_, args_.vocab, chunk, weights_, add);
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
    __syncthreads();  // the sums, before they are read
  }

  // The first ties, by token, stay: thread t has the t-th run of chunks.
  __device__ void keep_first_ties() {
    const std::uint64_t weight = weights_.kept(row_, key_value(cut_));
    const auto [begin, end] = my_chunks();
    std::uint64_t mine = 0;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) mine += __ldcg(ties_ + chunk);
    std::uint64_t before = shared_.scan(mine).before;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      const std::uint64_t left = num_ties_ > before ? num_ties_ - before : 0;
      const std::uint32_t ties = __ldcg(ties_ + chunk);
      if (ties == 0) continue;
      before += ties;
      const auto kept = static_cast<std::uint32_t>(min(std::uint64_t{ties}, left));
      __stcg(ties_ + chunk, kept);
      __stcg(sums_ + chunk, __ldcg(sums_ + chunk) + kept * weight);
    }
    __syncthreads();  // what is left of the ties, before the draw reads it
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
    for (std::int64_t chunk = begin; chunk < end; ++chunk) mine += __ldcg(sums_ + chunk);
    const auto [before, total] = shared_.scan(mine);
    std::uint64_t left = __umul64hi(row_.random, total);
    if (left >= before && left < before + mine) {
      left -= before;
      std::int64_t chunk = begin;
      for (std::uint64_t sum = 0; left >= (sum = __ldcg(sums_ + chunk)); ++chunk) left -= sum;
      shared_.chunk = chunk;
      shared_.number = left;
    }
    __syncthreads();  // where it falls, before all look there
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
    if (mine_to_see && !(has_cut_ && key < cut_) &&
        !(is_tie && ties_before >= __ldcg(ties_ + chunk))) {
      weight = weights_.kept(row_, logit);
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
  bool has_list_ = false;
  int num_listed_ = 0;
  SharedBits shared_bits_;
  bool has_cut_ = false;
  std::uint32_t cut_ = 0;
  std::uint64_t num_ties_ = 0;
};

}  // namespace gptoss::cuda
