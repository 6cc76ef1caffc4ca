// Functions over lanes are part of their callers: out of line they would pass vectors through
// memory, and leave symbols behind.
#pragma once

#ifndef GPTOSS_ISA
#error "isa_*.cc define GPTOSS_ISA, the namespace of their instruction set, before any include"
#endif

#define GPTOSS_INLINE [[gnu::always_inline]] inline

// Before a loop over an array of vectors: unrolled early, the array becomes registers. Left to
// itself GCC 12 unrolls so late that every sum passes through the stack.
#if defined(__clang__)
#define GPTOSS_UNROLL _Pragma("unroll")
#else
#define GPTOSS_UNROLL _Pragma("GCC unroll 64")
#endif
