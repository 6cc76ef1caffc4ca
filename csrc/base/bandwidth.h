// How fast this machine's memory can be read: the floor of decoding is bytes over this.
#pragma once

#include <cstddef>

namespace gptoss {

// Huge pages where the system gives them, as weights repacked or copied at load have; or the small
// ones in which a mapped file usually lies, and which alone cost some 15 % of the bandwidth.
enum class PageSize { kHuge, kSmall };

// Bytes per second of reading `num_bytes` of memory once by so many threads: the best of several
// patterns (one to sixteen streams, with and without prefetch), of `repeats` each. Choose several
// times the last-level cache. Throws OutOfMemory, InvalidArgument.
double measure_read_bandwidth(std::size_t num_bytes, int num_threads, int repeats,
                              PageSize pages = PageSize::kHuge);

}  // namespace gptoss
