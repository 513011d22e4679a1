// From the bytes of a file to panels of 16 rows. Compiled once, for any machine.
#pragma once
#include "kernels.h"
#include "pool.h"

namespace bise {

constexpr i64 kSound = -1;

// Bytes of `cols` columns of one row as GGUF stores them.
i64 row_bytes(Type type, i64 cols);
// Columns of one block in the file: 1, 32 or 256.
i64 block_columns(Type type);

// Up to 16 rows to one panel, which was zeros where there is nothing to put. -> as below.
i64 pack_panel(Type type, const uint8_t* file, int rows, i64 cols, uint8_t* panel);
// Fills w.data from `rows` x row_bytes. Returns the first row with a scale (or a float) that is NaN or infinite, or kSound.
i64 pack(Pool& pool, const uint8_t* file, Matrix& w);

}  // namespace bise
