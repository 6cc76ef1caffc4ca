// How fast this machine's memory can be read: the floor of decoding is bytes over this.
#pragma once

#include <cstddef>

namespace gptoss {

// Bytes per second of reading `num_bytes` of memory once, best of `repeats`, by so many threads.
// Choose several times the last-level cache. Throws OutOfMemory, InvalidArgument.
double measure_read_bandwidth(std::size_t num_bytes, int num_threads, int repeats);

}  // namespace gptoss
