// From the bytes of a file to panels of 16 rows, and single rows to float32. Compiled once, for any machine.
#pragma once
#include "kernels.h"
#include "pool.h"

namespace bise {

constexpr i64 kSound = -1;

// Bytes of `cols` columns of one row as GGUF stores them.
i64 row_bytes(Type type, i64 cols);
// Columns of one block in the file: 1, 32 or 256.
i64 block_columns(Type type);

// Fills w.data from `rows` x row_bytes. Returns the first row with a scale (or a float) that is NaN or infinite, or kSound.
i64 pack(Pool& pool, const uint8_t* file, Matrix& w);

// One row to float32, the same float operations as the specification in quant.py.
void dequantise_row(Type type, const uint8_t* row, i64 cols, float* out);

// Types without a kernel: the type that a row is turned into on the way (Q8_0 or Q6_K), and how. -1 where the name is unknown.
enum class Other : int { Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, IQ4_NL, IQ4_XS };
constexpr int kOthers = 7;
Type nearest(Other type);
i64 row_bytes(Other type, i64 cols);
i64 block_columns(Other type);
void convert_row(Other type, const uint8_t* row, i64 cols, uint8_t* out);
i64 pack(Pool& pool, Other type, const uint8_t* file, Matrix& w);

}  // namespace bise
