// Float weights to the blocks of a file. bise/rounding.py is the specification: the same operations in the same order, so the
// same bytes, on every instruction set. Lane = row: 16 rows are searched side by side, and nothing is summed across lanes.
#pragma once
#include "kernels.h"

namespace bise {

// What the search chose for one block of 16 rows. Which of these a type has: ROUNDING in rounding.py.
struct alignas(64) Rounded {
    int8_t q[kRows][256];                         // levels, as they are multiplied: signed ones are not biased yet
    int8_t scale[16][kRows], minimum[16][kRows];  // integers of the sub-blocks
    alignas(64) uint16_t d[kRows], least[kRows];  // float16 bits: scale of the block; of its minima, or its minimum
};

// The block of row `lane` as the file has it: layouts in pack.cpp.
void encode(Type type, const Rounded& r, int lane, uint8_t* block);

// Columns in one block of the search, and whether there is one for this type.
BISE_INLINE constexpr i64 rounded_columns(Type type) { return by_256(type) ? 256 : 32; }
BISE_INLINE constexpr bool rounds(Type type) { return !is_float(type); }

}  // namespace bise
