// For compiling llama.cpp with GCC 12 on a processor with AMX: -include this file.
//
// GCC 12 takes _tile_loadconfig to read 8 of the 64 bytes it is given, and leaves out the stores of
// the others; llama.cpp then loads a broken configuration and the process ends at the first prompt.
#pragma once

#ifdef __AMX_TILE__
#include <immintrin.h>

static inline void load_whole_tile_config(const void* config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(*static_cast<const char (*)[64]>(config)));
}
#define _tile_loadconfig load_whole_tile_config
#endif
