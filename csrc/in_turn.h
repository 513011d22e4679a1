// Rounding columns in turn: what a span of them is, and what it leaves behind.
#pragma once
#include "kernels.h"

namespace bise {

// Columns [at, at + n) of a matrix whose scales are settled. Arrays (rows, cols), n and cols in blocks of 32, n at most
// kColumns. Column k goes to the level that is nearest to w - error + (pull + moves of the columns before it in the span,
// each times feedback[k][its own]) / feedback[k][k].
struct Columns {
    Type type;
    i64 cols, at, n;
    const float* feedback;                // (cols, cols)
    const float *w, *zero, *step, *pull;  // level l is worth zero + step l
    float* error;                         // w - what it has become
    int8_t* level;
};

// The columns of a span that have moved, and by how much their errors did, for one row.
struct Moves {
    int count;
    uint8_t column[kColumns];
    float by[kColumns];
};

}  // namespace bise
