// Adapters: low = x A^T, y += low B^T. Both matrices are thin, A in rows and B in columns, so what runs beside each other is
// not panels: many tokens for one panel, or, with few tokens, several chunks of A's columns and several panels of B.
// One (row, token) adds A's columns ascending in chunks of 32, then the chunks ascending; and B's columns ascending, their sum
// then to y: one order whatever the number of tokens, groups and threads.
#include "isa.h"
#include "simd.h"

namespace bise {
namespace {

constexpr int kWide = kPanels * kTile < 4 ? 4 : kPanels * kTile;  // sums that fit the registers beside the rest
constexpr i64 kChunk = 32, kAhead = 256;    // columns in a chunk; columns that are asked for before they are needed
constexpr int kChains = kWide < 8 ? 4 : 8;  // sums that hide the time that each addition takes

template <Type type>
constexpr i64 kBytes = type == Type::F32 ? 64 : 32;  // of one column of 16 rows

// totals[c] += columns [k, k + count) of C chunks from column k on times those of n tokens
template <Type type, int C, int n>
BISE_INLINE void add_chunks(const uint8_t* panel, const float* x, i64 cols, i64 k, i64 count, F* totals) {
    F acc[C * n];
    for (int i = 0; i < C * n; i++) acc[i] = zero();
    for (const i64 end = k + count; k < end; k++) {
        for (int i = 0; i < C; i++) {
            const i64 j = k + i * kChunk;
            __builtin_prefetch(panel + (j + kAhead) * kBytes<type>);
            const F v = row16<type>(panel, j);
            for (int c = 0; c < n; c++) acc[i * n + c] = fma(v, set1(x[c * cols + j]), acc[i * n + c]);
        }
    }
    for (int i = 0; i < C * n; i++) totals[i % n] = add(totals[i % n], acc[i]);
}

template <Type type, int n>
void down_tile(const Matrix& a, const float* x, i64 p, i64 width, float* low) {
    constexpr int C = n < kChains ? kChains / n : 1;
    F totals[n];
    for (int c = 0; c < n; c++) totals[c] = zero();
    i64 k = 0;
    for (; k + C * kChunk <= a.cols; k += C * kChunk) add_chunks<type, C, n>(a.panel(p), x, a.cols, k, kChunk, totals);
    for (; k < a.cols; k += kChunk) {
        const i64 left = a.cols - k;
        add_chunks<type, 1, n>(a.panel(p), x, a.cols, k, left < kChunk ? left : kChunk, totals);
    }
    for (int c = 0; c < n; c++) store(low + c * width + kRows * p, totals[c]);
}

template <Type type, int P, int n>
BISE_INLINE void up_tile(const Matrix& b, const float* low, i64 width, i64 p0, const float* factor, float* y) {
    F acc[P * n];
    for (int i = 0; i < P * n; i++) acc[i] = zero();
    for (i64 k = 0; k < b.cols; k++) {
        for (int p = 0; p < P; p++) {
            if constexpr (P > 1) __builtin_prefetch(b.panel(p0 + p) + (k + kAhead) * kBytes<type>);
            const F v = row16<type>(b.panel(p0 + p), k);
            for (int c = 0; c < n; c++) acc[p * n + c] = fma(v, set1(low[c * width + k]), acc[p * n + c]);
        }
    }
    for (int i = 0; i < P * n; i++) {
        const i64 p = p0 + i / n;
        const int count = b.rows_of(p);
        float* to = y + i % n * b.rows + kRows * p;
        F sum = add(load_n(to, count), acc[i]);
        if (factor) sum = mul(sum, load_n(factor + kRows * p, count));
        store_n(to, sum, count);
    }
}

template <Type type, int P, int n>
void up_tiles(const Matrix& b, const float* low, i64 width, i64 p0, i64 p1, const float* factor, float* y) {
    for (; p0 + P <= p1; p0 += P) up_tile<type, P, n>(b, low, width, p0, factor, y);
    for (; p0 < p1; p0++) up_tile<type, 1, n>(b, low, width, p0, factor, y);
}

// f(n, t) for tokens t ... t + n - 1, as many at a time as there are sizes for
template <class Fn>
BISE_INLINE void in_tiles(i64 T, const Fn& f) {
    i64 t = 0;
    for (; t + kWide <= T; t += kWide) f(Constant<kWide>{}, t);
    if (t + kChains <= T) f(Constant<kChains>{}, t), t += kChains;
    if (t + 4 <= T) f(Constant<4>{}, t), t += 4;
    if (t + 2 <= T) f(Constant<2>{}, t), t += 2;
    if (t < T) f(Constant<1>{}, t);
}

template <Type type>
void down(const Matrix& a, const float* x, i64 T, i64 p, i64 width, float* low) {
    in_tiles(T, [&](auto n, i64 t) { down_tile<type, n>(a, x + t * a.cols, p, width, low + t * width); });
}

template <Type type>
void up(const Matrix& b, const float* low, i64 width, i64 T, i64 p0, i64 p1, const float* factor, float* y) {
    in_tiles(T, [&](auto n, i64 t) {
        up_tiles<type, n >= 4 ? 1 : 4 / n, n>(b, low + t * width, width, p0, p1, factor, y + t * b.rows);
    });
}

}  // namespace

namespace BISE_ISA {

void down(const Matrix& a, const float* x, i64 T, i64 p, i64 width, float* low) {
    const auto of = a.type == Type::F32   ? bise::down<Type::F32>
                    : a.type == Type::F16 ? bise::down<Type::F16>
                                          : bise::down<Type::BF16>;
    of(a, x, T, p, width, low);
}

void up(const Matrix& b, const float* low, i64 width, i64 T, i64 p0, i64 p1, const float* factor, float* y) {
    const auto of = b.type == Type::F32 ? bise::up<Type::F32> : b.type == Type::F16 ? bise::up<Type::F16> : bise::up<Type::BF16>;
    of(b, low, width, T, p0, p1, factor, y);
}

}  // namespace BISE_ISA
}  // namespace bise
