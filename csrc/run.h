// The verbs over a pool: who computes which part. What is computed does not depend on it.
#pragma once
#include <vector>

#include "in_turn.h"
#include "kernels.h"
#include "pool.h"

namespace bise {

// x (T, cols) times every weight -> ys[i] (T, rows_i); all weights have the same cols
void linear(const Kernels& k, Pool& pool, const float* x, i64 T, const std::vector<const Matrix*>& ws,
            const std::vector<float*>& ys);
// What an adapter does to rows [t0, t1) of one weight's y (T, b->rows): y += (x A^T) B^T, then y *= factor (b->rows) unless null.
struct Change {
    const Matrix *a, *b;  // (rank, cols) and (rows, rank), of floats
    const float* factor;
    i64 t0, t1;
    float* y;
};
// x (T, cols), that all of the weights were given; no two of the changes meet in one row of one y
void adapt(const Kernels& k, Pool& pool, const float* x, const std::vector<Change>& changes);
// the same backwards: every dys[i] (T, rows_i) times ws[i], summed -> dx (T, cols); the weights as the file has them
void linear_back(const Kernels& k, Pool& pool, const std::vector<const float*>& dys, i64 T, const std::vector<const Matrix*>& ws,
                 float* dx);
// rows of a file -> y (rows, cols)
void dequantise(const Kernels& k, Pool& pool, Type type, const uint8_t* data, i64 rows, i64 cols, float* y);
// blocks of 64 numbers of 4 bits -> their levels times their scales
void look_up(const Kernels& k, Pool& pool, const float* levels, const uint8_t* p, const float* scales, i64 blocks, float* y);
void rms_norm(const Kernels& k, Pool& pool, const float* x, const float* w, float eps, i64 T, i64 n, float* y);
void rope(const Kernels& k, Pool& pool, float* x, const float* cos, const float* sin, i64 T, i64 heads, i64 half);
void swiglu(const Kernels& k, Pool& pool, const float* gate, const float* up, i64 n, float* y);
void rms_norm_back(const Kernels& k, Pool& pool, const float* x, const float* w, float eps, i64 T, i64 n, const float* dy,
                   float* dx);
void swiglu_back(const Kernels& k, Pool& pool, const float* gate, const float* up, const float* dy, i64 n, float* dgate,
                 float* dup);
void store(const Kernels& k, Pool& pool, const RingView& ring, const Span* spans, i64 count, const float* x, const float* v);
// window: keys a query sees, itself included
void attend(const Kernels& k, Pool& pool, const RingView& ring, const Span* spans, i64 count, i64 heads, i64 window,
            const float* q, float* out);

// x (rows, cols) to the blocks of `type`, cols a whole number of blocks; importance (cols), positive, or null
// -> the first row that holds a NaN, or a value beyond the 65504 of float16; or -1
i64 round_rows(const Kernels& k, Pool& pool, Type type, const float* x, i64 rows, i64 cols, const float* importance,
               uint8_t* out);

// These columns of all rows, rounded in turn.
void in_turn(const Kernels& k, Pool& pool, const Columns& columns, i64 rows);
// All columns, a span after the other; `pull` follows what moves.
void sweep(const Kernels& k, Pool& pool, Columns columns, i64 rows, float* pull);

// The instruction sets of this build that run here, best first.
const std::vector<const Kernels*>& kernels_here();

}  // namespace bise
