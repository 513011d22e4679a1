// The plain C++ face of the kernels: what is stored how, and one table of functions per instruction set.
// Letters in shapes as in ops/__init__.py: T tokens, S sequences, H query heads, G key/value heads, D head_dim, N slots.
#pragma once
#include <cstdint>

#include "memory.h"

#define BISE_INLINE inline __attribute__((always_inline))

namespace bise {

using i64 = int64_t;

constexpr i64 kRows = 16;      // output rows interleaved in one panel: one int32 or float lane each
constexpr i64 kColumns = 256;  // input columns in one packed block; rows are padded with zero blocks
constexpr i64 kKeys = 32;      // keys in one attention tile

// floats, types with a scale per 32 columns, types by 256 columns
enum class Type : int { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS };
constexpr int kTypes = 15;
BISE_INLINE constexpr bool is_float(Type type) { return type <= Type::BF16; }
BISE_INLINE constexpr bool by_256(Type type) { return type >= Type::Q2_K; }

// Bytes of one packed block (16 rows x 256 columns). The same as in the file, but for Q3_K and Q6_K whose scale d grows to
// float32.
BISE_INLINE constexpr i64 packed_bytes(Type type) {
    constexpr i64 bytes[kTypes] = {16384, 8192, 8192, 4352, 2304, 2560, 2816, 3072, 2304, 1344, 1792, 2304, 2816, 3392, 2176};
    return bytes[static_cast<int>(type)];
}

// A weight ready for `linear`: panels of 16 rows, each a run of packed blocks; or rows as the file has them, for training.
struct Matrix {
    Type type;
    i64 rows, cols;
    i64 panels, blocks;  // ceil(rows / 16), ceil(cols / 256)
    i64 stride;          // from one token's output to the next one's: rows, unless it is a part of a larger matrix
    bool packed;         // in panels
    Buffer data;         // panels * panel_bytes(), 64-byte aligned, or the file's rows; its own, or a view
    // (always inlined: a copy compiled for one instruction set must not be the one that the linker keeps for all)
    BISE_INLINE i64 panel_bytes() const {
        if (is_float(type)) return (cols * (type == Type::F32 ? 64 : 32) + 63) / 64 * 64;
        return blocks * packed_bytes(type);
    }
    BISE_INLINE const uint8_t* panel(i64 p) const { return data.bytes() + p * panel_bytes(); }
    BISE_INLINE int rows_of(i64 p) const { return static_cast<int>(rows - kRows * p < kRows ? rows - kRows * p : kRows); }
};

// 256 activations of one token as 8-bit integers, with the sums that the weights' offsets and minima need.
// They lie as [block][padded(T)]. One scale per 256 for the types by 256 columns, one per 32 for the others.
constexpr i64 kFew = 4;  // up to here a kernel for 1, 2 or 4 columns; beyond, columns come in tiles
BISE_INLINE constexpr i64 padded(i64 T) { return T <= 2 ? T : (T + 3) / 4 * 4; }
struct alignas(64) Act256 {
    int8_t q[256];
    float d;
    int32_t minima[4];   // int16 pairs of sums over 32: (0,2) (1,3) (4,6) (5,7)
    int32_t pairs[8];    // int16 pairs of sums over 16: (4i, 4i+2) (4i+1, 4i+3)
    int32_t offset[16];  // -32 * sum over 16
};
struct alignas(64) Act32 {
    int8_t q[256];
    float d[8], sum[8];                // sum: d times the sum over 32
    int32_t offset8[8], offset128[8];  // -8 and -128 times the sum over 32
};
static_assert(sizeof(Act256) == 384 && sizeof(Act32) == 384);

enum class Kv : int { F32, F16, Q8_0 };

// One layer's keys and values: k, v (S, G, N, D); scales (S, G, N, D/32) as float16 bits for Q8_0, else null.
struct RingView {
    Kv kv;
    i64 S, G, N, D;
    void *k, *v;
    uint16_t *k_scale, *v_scale;
};

struct Span {
    int32_t sequence, row, count, position;
};

// One piece of attention: the queries of `count` tokens from row `row` on, against key/value head g.
struct Queries {
    i64 sequence, g, row, count, position;
};

struct Columns;  // in_turn.h
struct Moves;

// Everything one instruction set offers. Single-threaded; ranges are half open.
struct Kernels {
    const char* name;

    // n numbers as the file stores them, whole blocks of any type -> float32, the operations of quant.py
    void (*dequantise)(Type type, const uint8_t* p, i64 n, float* y);
    // blocks of 64 numbers, 4 bits each (low halves of 32 bytes, then high ones) -> the scale times one of 16 levels
    void (*look_up)(const float* levels, const uint8_t* p, const float* scales, i64 blocks, float* y);

    // x (T, cols), tokens [t0, t1) -> blocks [block][padded(T)]; rows are padded with zeros
    void (*quantise256)(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act256* out);
    void (*quantise32)(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act32* out);
    void (*quantise_gradients)(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act32* out);  // up or down by chance
    // panels [p0, p1) of w times every token -> y (T, rows); x is float32 (T, cols), Act32 or Act256 as w.type asks
    void (*linear)(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y);
    // an adapter's A and B, both of floats: panel p of a times x (T, cols) -> low[16 * p ...], rows `width` numbers apart; then
    // y (T, rows) += panels [p0, p1) of b times low, and times factor (rows) where that is not null
    void (*down)(const Matrix& a, const float* x, i64 T, i64 p, i64 width, float* low);
    void (*up)(const Matrix& b, const float* low, i64 width, i64 T, i64 p0, i64 p1, const float* factor, float* y);
    // columns [c, c + n) of rows as the file has them, transposed and rounded to Q8_0: block 0 of n / 16 panels and on
    void (*turn)(const Matrix& w, i64 c, i64 n, uint8_t* panels, i64 panel_bytes);

    void (*rms_norm)(const float* x, const float* w, float eps, i64 n, i64 t0, i64 t1, float* y);
    void (*rope)(float* x, const float* cos, const float* sin, i64 heads, i64 half, i64 t0, i64 t1);
    void (*swiglu)(const float* gate, const float* up, i64 n, float* y);
    // the same two backwards: from dy, and what went in, to its gradient (that of w is not wanted)
    void (*rms_norm_back)(const float* x, const float* w, float eps, i64 n, i64 t0, i64 t1, const float* dy, float* dx);
    void (*swiglu_back)(const float* gate, const float* up, const float* dy, i64 n, float* dgate, float* dup);

    // k, v (T, G*D): rows [i0, i1) of one span go to their slots
    void (*store)(const RingView& ring, const Span& span, i64 i0, i64 i1, const float* k, const float* v);
    // q, out (T, G*R*D). `scratch` holds attend_scratch(R, D) bytes, 64-byte aligned
    void (*attend)(const RingView& ring, const Queries& unit, i64 R, i64 window, const float* q, float* out, void* scratch);

    // x (rows, cols), up to 16 rows, to blocks of `type`; importance (cols) or null. -> a sick row (NaN, beyond 65504) or -1
    int (*round_rows)(Type type, const float* x, i64 cols, int rows, const float* importance, uint8_t* out, i64 row_bytes);
    // rows [row, row + rows), up to 16, of some columns, rounded in turn; moves (rows) or null: what has moved
    void (*in_turn)(const Columns& columns, i64 row, int rows, Moves* moves);
    // pull (all rows, cols) += moves (all rows) times feedback, rows [row, row + rows)
    void (*spread)(const Columns& columns, const Moves* moves, i64 row, i64 rows, float* pull);
};

constexpr i64 kQueries = 32;  // most tokens in one Queries
BISE_INLINE constexpr i64 attend_scratch(i64 R, i64 D) {
    const i64 wide = (D + 15) / 16 * 16, rows = kQueries * R;
    return 4 * (2 * rows * wide + 2 * kKeys * wide + rows * kKeys + wide + (rows + 15) / 16 * 16 + 16 * rows) + 64;
}

extern const Kernels kernels_base;
extern const Kernels kernels_avx2, kernels_avx512vnni;  // where BISE_X86 is defined
extern const Kernels kernels_neondot;                   // where BISE_ARM64 is

}  // namespace bise
