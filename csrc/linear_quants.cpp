// Quantised weights times quantised activations. The float operations that one (row, token) sees come in one order whatever
// the number of columns, tiles and threads: blocks ascending, and within a block its scale groups ascending.
#include "isa.h"
#include "packed.h"

namespace bise {
namespace {

// acc[c] += one block of a K type times one block of column c
template <class W, int n>
BISE_INLINE void block_dot(const W& w, const Act256* a, F* acc) {
    constexpr int step = W::per_scale < dots_per_part(W::top) ? W::per_scale : dots_per_part(W::top);
    Sum sums[n];
    for (int c = 0; c < n; c++) sums[c] = sum_zero();
    unroll<64 / step>([&](auto i) {
        Part parts[n];
        for (int c = 0; c < n; c++) parts[c] = part(W::offset ? a[c].offset[i * step / 4] : 0);
        unroll<step>([&](auto k) {
            constexpr int j = i * step + k;
            const I q = w.template quant<j>();
            for (int c = 0; c < n; c++) parts[c] = dot(parts[c], q, a[c].q + 4 * j);
        });
        const Scale scale = to_scale(w.template scale<i * step / W::per_scale>());
        for (int c = 0; c < n; c++) sums[c] = add_scaled(sums[c], parts[c], scale);
    });
    const F d = w.d();
    for (int c = 0; c < n; c++) acc[c] = fma(mul(d, set1(a[c].d)), sum_float(sums[c]), acc[c]);
    if constexpr (W::has_minima) {
        const F dmin = w.dmin();
        for (int c = 0; c < n; c++) {
            I m = zero_i();
            if constexpr (W::offset) unroll<8>([&](auto i) { m = dot2(m, w.template minima<i>(), a[c].pairs[i]); });
            else unroll<4>([&](auto i) { m = dot2(m, w.template minima<i>(), a[c].minima[i]); });
            acc[c] = fnma(mul(dmin, set1(a[c].d)), to_float(m), acc[c]);
        }
    }
}

// the same for Q8_0 and Q4_0
template <class W, int n>
BISE_INLINE void block_dot(const W& w, const Act32* a, F* acc) {
    unroll<8>([&](auto s) {
        Part parts[n];
        for (int c = 0; c < n; c++) parts[c] = part(W::offset == 8 ? a[c].offset8[s] : a[c].offset128[s]);
        unroll<8>([&](auto k) {
            constexpr int j = 8 * s + k;
            const I q = w.template quant<j>();
            for (int c = 0; c < n; c++) {
                if constexpr (W::is_signed) parts[c] = dot_signed(parts[c], q, a[c].q + 4 * j);
                else parts[c] = dot(parts[c], q, a[c].q + 4 * j);
            }
        });
        const F d = w.template d<s>();
        for (int c = 0; c < n; c++) {
            I total = W::is_signed ? parts[c] : part_total(parts[c]);
            if constexpr (kNarrow && !W::is_signed) total = add_i(total, set1_i(a[c].offset8[s]));
            acc[c] = fma(mul(to_float(total), d), set1(a[c].d[s]), acc[c]);
        }
    });
}

// one panel times n columns, straight from the packed bytes; sums stay in registers
template <Type type, int n>
void columns(const Matrix& w, i64 p, const typename Packed<type>::Act* a, float* y) {
    const uint8_t* panel = w.panel(p);
    F acc[n];
    for (int c = 0; c < n; c++) acc[c] = zero();
    for (i64 b = 0; b < w.blocks; b++, panel += packed_bytes(type), a += n) {
        block_dot<Packed<type>, n>(Packed<type>(panel), a, acc);
    }
    for (int c = 0; c < n; c++) store_n(y + c * w.rows + kRows * p, acc[c], w.rows_of(p));
}

// kTile columns of a strip of sums
template <class W>
__attribute__((noinline)) void tile(const W& w, const typename W::Act* a, float* sums) {
    F acc[kTile];
    for (int c = 0; c < kTile; c++) acc[c] = load(sums + 16 * c);
    block_dot<W, kTile>(w, a, acc);
    for (int c = 0; c < kTile; c++) store(sums + 16 * c, acc[c]);
}

// kPanels panels times `count` columns: each block is unpacked once, sums wait in strips. Columns come in whole tiles
// (the activations are padded); only `count` of them are stored.
constexpr i64 kStrip = 64;
constexpr i64 kPanels = 2;
template <Type type>
void many_columns(const Matrix& w, i64 p, i64 panels, const typename Packed<type>::Act* a, i64 stride, i64 count, float* y) {
    alignas(64) float sums[kPanels][16 * kStrip] = {};
    for (i64 b = 0; b < w.blocks; b++, a += stride) {
        const Unpacked<type> blocks[kPanels] = {Unpacked<type>(w.panel(p) + b * packed_bytes(type)),
                                                Unpacked<type>(w.panel(p + panels - 1) + b * packed_bytes(type))};
        for (i64 c = 0; c < count; c += kTile) {
            for (i64 i = 0; i < panels; i++) tile(blocks[i], a + c, sums[i] + 16 * c);
        }
    }
    for (i64 i = 0; i < panels; i++) {
        float* to = y + kRows * (p + i);
        for (i64 c = 0; c < count; c++) store_n(to + c * w.rows, load(sums[i] + 16 * c), w.rows_of(p + i));
    }
}

template <Type type>
void linear(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y) {
    const auto* a = static_cast<const typename Packed<type>::Act*>(x);
    if (T > kFew) {
        for (i64 c = 0; c < T; c += kStrip) {
            const i64 count = T - c < kStrip ? T - c : kStrip;
            for (i64 p = p0; p < p1; p += kPanels) {
                many_columns<type>(w, p, p1 - p < kPanels ? p1 - p : kPanels, a + c, padded(T), count, y + c * w.rows);
            }
        }
        return;
    }
    const auto columns_of = T == 1 ? columns<type, 1> : T == 2 ? columns<type, 2> : T == 3 ? columns<type, 3> : columns<type, 4>;
    for (i64 p = p0; p < p1; p++) columns_of(w, p, a, y);
}

}  // namespace

namespace BISE_ISA {
void linear_quants(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y) {
    switch (w.type) {
        case Type::Q8_0: return linear<Type::Q8_0>(w, x, T, p0, p1, y);
        case Type::Q4_0: return linear<Type::Q4_0>(w, x, T, p0, p1, y);
        case Type::Q4_K: return linear<Type::Q4_K>(w, x, T, p0, p1, y);
        case Type::Q5_K: return linear<Type::Q5_K>(w, x, T, p0, p1, y);
        case Type::Q6_K: return linear<Type::Q6_K>(w, x, T, p0, p1, y);
        default: return;
    }
}
}  // namespace BISE_ISA
}  // namespace bise
