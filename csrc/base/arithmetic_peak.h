// How fast this machine multiplies and adds: the floor of a prompt is operations over this.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace gptoss {

// Operations a second (a multiply-add is two) of loops that touch registers alone, on so many
// threads (0: default_num_threads()), for each instruction of this machine that a product may use:
// fma_scalar, fma_avx2, vnni_avx2, fma_avx512, vnni_avx512, bf16_avx512, amx_int8, amx_bf16. The
// best of several windows that take `seconds` together. Throws InvalidArgument.
std::vector<std::pair<std::string, double>> measure_arithmetic_peaks(int num_threads,
                                                                     double seconds);

}  // namespace gptoss
