// Functions over lanes are part of their callers: out of line they would pass vectors through
// memory, and leave symbols behind.
#pragma once

#ifndef GPTOSS_ISA
#error "isa_*.cc define GPTOSS_ISA, the namespace of their instruction set, before any include"
#endif

#define GPTOSS_INLINE [[gnu::always_inline]] inline
