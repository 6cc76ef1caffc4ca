// Descriptions of matrices for the bulk tensor copy engine (compute capability 9.0). Encoding one
// is host arithmetic of well under a microsecond: launchers make theirs anew each time.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/layout.h"

namespace gptoss::cuda {

// bf16 [rows][cols], boxes of box_rows rows (256 at most) by 64 columns, with the swizzle that
// wgmma reads: inside 1,024 bytes (8 rows of 128), 16-byte unit u of row r lies at u ^ r.
CUtensorMap token_tensor_map(const void* data, std::int64_t rows, std::int64_t cols,
                             std::uint32_t box_rows);
// The same in pieces of 64 columns, a divisor of cols: boxes of box_rows rows by box_chunks pieces,
// one after another, coordinates (0, row, piece).
CUtensorMap token_chunks_tensor_map(const void* data, std::int64_t rows, std::int64_t cols,
                                    std::uint32_t box_rows, std::uint32_t box_chunks);
// Boxes of box_tiles row tiles by 64 columns (4 k tiles), coordinates (256 * stage, row tile), as
// 8-byte elements.
CUtensorMap weight_tensor_map(const DenseTiles& weight, std::uint32_t box_tiles);
// Boxes of box_tiles row tiles by box_chunks records, coordinates (0, chunk, row tile of all
// experts).
CUtensorMap weight_tensor_map(const MxTiles& weight, std::uint32_t box_tiles,
                              std::uint32_t box_chunks);

}  // namespace gptoss::cuda
