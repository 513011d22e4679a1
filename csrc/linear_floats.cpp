// Float weights times float32 activations. One (row, token) adds its columns ascending in chunks of 256, then the chunks
// ascending: one order whatever the number of columns, tiles and threads, and a small rounding error.
#include "isa.h"
#include "simd.h"

namespace bise {
namespace {

template <Type type>
BISE_INLINE F row16(const uint8_t* panel, i64 k) {  // column k of 16 rows
    if constexpr (type == Type::F32)
        return load(reinterpret_cast<const float*>(panel) + 16 * k);
    else if constexpr (type == Type::F16)
        return load_f16(reinterpret_cast<const uint16_t*>(panel) + 16 * k);
    else
        return load_bf16(reinterpret_cast<const uint16_t*>(panel) + 16 * k);
}

// total (P, n) += columns [0, count) of P blocks of floats (256, 16) times n tokens of x
template <int P, int n>
__attribute__((noinline)) void tile(const float* const* blocks, const float* x, i64 cols, i64 count, float* const* totals) {
    F acc[P * n];
    for (int i = 0; i < P * n; i++) acc[i] = zero();
    for (i64 k = 0; k < count; k++) {
        F v[P];
        for (int p = 0; p < P; p++) v[p] = load(blocks[p] + 16 * k);
        for (int c = 0; c < n; c++) {
            const F a = set1(x[c * cols + k]);
            for (int p = 0; p < P; p++) acc[p * n + c] = fma(v[p], a, acc[p * n + c]);
        }
    }
    for (int i = 0; i < P * n; i++) {
        float* total = totals[i / n] + 16 * (i % n);
        store(total, add(load(total), acc[i]));
    }
}

// P panels times n tokens, straight from the panels' bytes: P * n chains of sums run beside each other.
template <Type type, int P, int n>
void few_tokens(const Matrix& w, i64 p0, const float* x, float* y) {
    constexpr i64 size = type == Type::F32 ? 64 : 32;  // bytes of one column of 16 rows
    F total[P * n];
    for (int i = 0; i < P * n; i++) total[i] = zero();
    for (i64 k = 0; k < w.cols;) {
        const i64 end = k + kColumns < w.cols ? k + kColumns : w.cols;
        F acc[P * n];
        for (int i = 0; i < P * n; i++) acc[i] = zero();
        for (; k < end; k++) {
            F v[P];
            for (int p = 0; p < P; p++) {
                __builtin_prefetch(w.panel(p0 + p) + k * size + 2048);
                v[p] = row16<type>(w.panel(p0 + p), k);
            }
            for (int c = 0; c < n; c++)
                for (int p = 0; p < P; p++) acc[p * n + c] = fma(v[p], set1(x[c * w.cols + k]), acc[p * n + c]);
        }
        for (int i = 0; i < P * n; i++) total[i] = add(total[i], acc[i]);
    }
    for (int i = 0; i < P * n; i++) store_n(y + i % n * w.stride + kRows * (p0 + i / n), total[i], w.rows_of(p0 + i / n));
}

template <Type type, int n>
void few_tokens(const Matrix& w, i64 p0, i64 p1, const float* x, float* y) {
    for (; p0 + 2 <= p1; p0 += 2) few_tokens<type, 2, n>(w, p0, x, y);
    if (p0 < p1) few_tokens<type, 1, n>(w, p0, x, y);
}

// Panels [p, p1), at most kPanels, times `count` tokens: 256 columns become float32 once for all of them. A missing panel is
// the last one again, and not stored.
constexpr i64 kStrip = 48;
template <Type type>
void many_tokens(const Matrix& w, i64 p, i64 p1, const float* x, i64 count, float* y) {
    constexpr i64 size = type == Type::F32 ? 64 : 32;  // bytes of one column of 16 rows
    alignas(64) float sums[kPanels][16 * kStrip] = {}, floats[kPanels][16 * kColumns];
    for (i64 k = 0; k < w.cols; k += kColumns) {
        const i64 n = w.cols - k < kColumns ? w.cols - k : kColumns;
        const float* blocks[kPanels];
        for (i64 i = 0; i < kPanels; i++) {
            const uint8_t* panel = w.panel(p + i < p1 ? p + i : p1 - 1);
            for (i64 j = 0; j < n; j++) {
                __builtin_prefetch(panel + (k + j) * size + 8192);
                store(floats[i] + 16 * j, row16<type>(panel, k + j));
            }
            blocks[i] = floats[i];
        }
        for (i64 c = 0; c < count;) {
            float* totals[kPanels];
            for (i64 i = 0; i < kPanels; i++) totals[i] = sums[i] + 16 * c;
            const float* from = x + c * w.cols + k;
            if (count - c >= kTile)
                tile<kPanels, kTile>(blocks, from, w.cols, n, totals), c += kTile;
            else if (count - c >= 2)
                tile<kPanels, 2>(blocks, from, w.cols, n, totals), c += 2;
            else
                tile<kPanels, 1>(blocks, from, w.cols, n, totals), c += 1;
        }
    }
    for (i64 i = 0; i < p1 - p; i++)
        for (i64 c = 0; c < count; c++) store_n(y + c * w.stride + kRows * (p + i), load(sums[i] + 16 * c), w.rows_of(p + i));
}

template <Type type>
void linear(const Matrix& w, const float* x, i64 T, i64 p0, i64 p1, float* y) {
    if (T == 1) return few_tokens<type, 1>(w, p0, p1, x, y);
    if (T == 2) return few_tokens<type, 2>(w, p0, p1, x, y);
    if (T == 4) return few_tokens<type, 4>(w, p0, p1, x, y);
    for (i64 c = 0; c < T; c += kStrip) {
        const i64 count = T - c < kStrip ? T - c : kStrip;
        for (i64 p = p0; p < p1; p += kPanels)
            many_tokens<type>(w, p, p1 - p < kPanels ? p1 : p + kPanels, x + c * w.cols, count, y + c * w.stride);
    }
}

}  // namespace

namespace BISE_ISA {
void linear_floats(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y) {
    const auto* floats = static_cast<const float*>(x);
    switch (w.type) {
        case Type::F32:
            return linear<Type::F32>(w, floats, T, p0, p1, y);
        case Type::F16:
            return linear<Type::F16>(w, floats, T, p0, p1, y);
        default:
            return linear<Type::BF16>(w, floats, T, p0, p1, y);
    }
}
}  // namespace BISE_ISA
}  // namespace bise
