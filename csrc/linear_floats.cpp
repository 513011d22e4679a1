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

template <Type type, int n>
void tile(const Matrix& w, const uint8_t* panel, const float* x, int rows, float* y) {
    F total[n];
    for (int c = 0; c < n; c++) total[c] = zero();
    for (i64 k = 0; k < w.cols;) {
        const i64 end = k + kColumns < w.cols ? k + kColumns : w.cols;
        F acc[n];
        for (int c = 0; c < n; c++) acc[c] = zero();
        for (; k < end; k++) {
            const F v = row16<type>(panel, k);
            for (int c = 0; c < n; c++) acc[c] = fma(v, set1(x[c * w.cols + k]), acc[c]);
        }
        for (int c = 0; c < n; c++) total[c] = add(total[c], acc[c]);
    }
    for (int c = 0; c < n; c++) store_n(y + c * w.rows, total[c], rows);
}

template <Type type>
void linear(const Matrix& w, const float* x, i64 T, i64 p0, i64 p1, float* y) {
    constexpr i64 kBlock = 64;  // columns that stay in cache while the panels pass
    for (i64 t0 = 0; t0 < T; t0 += kBlock) {
        const i64 t1 = t0 + kBlock < T ? t0 + kBlock : T;
        for (i64 p = p0; p < p1; p++) {
            const auto at = [&](i64 t) { return y + t * w.rows + kRows * p; };
            i64 t = t0;
            for (; t + kTile <= t1; t += kTile) tile<type, kTile>(w, w.panel(p), x + t * w.cols, w.rows_of(p), at(t));
            for (; t + 2 <= t1; t += 2) tile<type, 2>(w, w.panel(p), x + t * w.cols, w.rows_of(p), at(t));
            for (; t < t1; t++) tile<type, 1>(w, w.panel(p), x + t * w.cols, w.rows_of(p), at(t));
        }
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
