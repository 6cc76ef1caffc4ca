// Work that comes again and again, replayed as graphs.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <utility>

#include "cuda/device.h"

namespace gptoss::cuda {

// Graphs by Key, which holds all that a graph holds fast: addresses, counts, grids.
template <typename Key>
class GraphCache {
 public:
  // What queue() queues on the stream. Kernels are launched one by one the first two times that a
  // key comes, and the graph is made behind the second, while the device works: that takes the host
  // 1.3 ms for a step of 24 layers, which nobody should wait for, nor spend on what never comes
  // again.
  template <typename Queue>
  void run(const Key& key, cudaStream_t stream, const char* op, Queue&& queue) {
    // A graph that runs is destroyed once it has.
    if (graphs_.size() >= kKept && !graphs_.contains(key)) graphs_.clear();
    const auto [found, is_new] = graphs_.try_emplace(key);
    Graph& graph = found->second;
    if (!graph.empty()) return graph.launch(stream, op);
    queue();
    if (!is_new) graph = Graph(stream, op, std::forward<Queue>(queue));
  }

 private:
  static constexpr std::size_t kKept = 128;
  std::map<Key, Graph> graphs_;
};

}  // namespace gptoss::cuda
