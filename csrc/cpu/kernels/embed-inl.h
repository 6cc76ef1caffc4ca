// embed: rows of a bf16 table [vocab][hidden] to float32 [num_tokens][hidden], exactly.
// Moves 6 bytes an element. Token ids are checked before.
#pragma once

#include "backend/op_args.h"

namespace gptoss::cpu::GPTOSS_ISA {
namespace {

void embed(const EmbedArgs& args, Range tokens) {
  const std::int64_t hidden = args.table.cols;
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const bf16* from = args.table.row(args.tokens[token]);
    float* to = args.out.row(token);
    std::int64_t i = 0;
    for (; i + kLanes <= hidden; i += kLanes) store(to + i, load(from + i));
    if (i < hidden) store_partial(to + i, load_partial(from + i, hidden - i), hidden - i);
  }
}

}  // namespace
}  // namespace gptoss::cpu::GPTOSS_ISA
