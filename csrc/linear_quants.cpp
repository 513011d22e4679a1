// Quantised weights times quantised activations. The float operations that one (row, token) sees come in one order whatever
// the number of columns, tiles and threads: blocks ascending, and within a block its scale groups ascending.
#include "isa.h"
#include "packed.h"

namespace bise {
namespace {

// sum over the groups of a block: minimum (or, for Q6_K, scale) times the sum of activations
template <class W>
BISE_INLINE I minima_dot(const W& w, const Act256& a) {
    I m = zero_i();
    if constexpr (W::offset)
        unroll<8>([&](auto i) BISE_LAMBDA { m = dot2(m, w.template minima<i>(), a.pairs[i]); });
    else
        unroll<4>([&](auto i) BISE_LAMBDA { m = dot2(m, w.template minima<i>(), a.minima[i]); });
    return m;
}

// acc[p * n + c] += a block of panel p times a block of column c, for P panels and n columns: here for the K types
template <class W, int P, int n>
BISE_INLINE void block_dot(const W* w, const Act256* a, F* acc) {
    constexpr int step = W::per_scale < dots_per_part(W::top) ? W::per_scale : dots_per_part(W::top);
    Sum sums[P * n];
    for (int i = 0; i < P * n; i++) sums[i] = sum_zero();
    unroll<64 / step>([&](auto i) BISE_LAMBDA {
        Part parts[P * n];
        for (int c = 0; c < P * n; c++) parts[c] = part(W::offset ? a[c % n].offset[i * step / 4] : 0);
        unroll<step>([&](auto k) BISE_LAMBDA {
            constexpr int j = i * step + k;
            I q[P];
            for (int p = 0; p < P; p++) q[p] = w[p].template quant<j>();
            for (int c = 0; c < n; c++)
                for (int p = 0; p < P; p++) parts[p * n + c] = dot(parts[p * n + c], q[p], a[c].q + 4 * j);
        });
        for (int p = 0; p < P; p++) {
            const Scale scale = to_scale(w[p].template scale<i * step / W::per_scale>());
            for (int c = 0; c < n; c++) sums[p * n + c] = add_scaled(sums[p * n + c], parts[p * n + c], scale);
        }
    });
    for (int p = 0; p < P; p++) {
        const F d = w[p].d();
        for (int c = 0; c < n; c++) acc[p * n + c] = fma(mul(d, set1(a[c].d)), sum_float(sums[p * n + c]), acc[p * n + c]);
        if constexpr (W::has_minima) {
            const F dmin = w[p].dmin();
            for (int c = 0; c < n; c++) {
                const F minima = to_float(minima_dot(w[p], a[c]));
                acc[p * n + c] = fnma(mul(dmin, set1(a[c].d)), minima, acc[p * n + c]);
            }
        }
    }
}

// the same for Q8_0 and Q4_0
template <class W, int P, int n>
BISE_INLINE void block_dot(const W* w, const Act32* a, F* acc) {
    unroll<8>([&](auto s) BISE_LAMBDA {
        Part parts[P * n];
        for (int c = 0; c < P * n; c++) parts[c] = part(W::offset == 8 ? a[c % n].offset8[s] : a[c % n].offset128[s]);
        unroll<8>([&](auto k) BISE_LAMBDA {
            constexpr int j = 8 * s + k;
            I q[P];
            for (int p = 0; p < P; p++) q[p] = w[p].template quant<j>();
            for (int c = 0; c < n; c++) {
                for (int p = 0; p < P; p++) {
                    Part& sum = parts[p * n + c];
                    if constexpr (W::is_signed)
                        sum = dot_signed(sum, q[p], a[c].q + 4 * j);
                    else
                        sum = dot(sum, q[p], a[c].q + 4 * j);
                }
            }
        });
        for (int p = 0; p < P; p++) {
            const F d = w[p].template d<s>();
            for (int c = 0; c < n; c++) {
                I total = W::is_signed ? parts[p * n + c] : part_total(parts[p * n + c]);
                if constexpr (kNarrow && !W::is_signed) total = add_i(total, set1_i(a[c].offset8[s]));
                acc[p * n + c] = fma(mul(to_float(total), d), set1(a[c].d[s]), acc[p * n + c]);
            }
        }
    });
}

// Asks for the bytes of a block that comes later: the processor's own prefetcher stops at the end of each page.
constexpr i64 kAhead = 4096;
BISE_INLINE void prefetch(const uint8_t* p, i64 bytes) {
    for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// one panel times n columns, straight from the packed bytes; sums stay in registers
template <Type type, int n>
void columns(const Matrix& w, i64 p, const typename Packed<type>::Act* a, float* y) {
    const uint8_t* panel = w.panel(p);
    F acc[n];
    for (int c = 0; c < n; c++) acc[c] = zero();
    for (i64 b = 0; b < w.blocks; b++, panel += packed_bytes(type), a += n) {
        prefetch(panel + kAhead, packed_bytes(type));
        const Packed<type> w1(panel);
        block_dot<Packed<type>, 1, n>(&w1, a, acc);
    }
    for (int c = 0; c < n; c++) store_n(y + c * w.rows + kRows * p, acc[c], w.rows_of(p));
}

// kPanels panels times kTile columns of their strips of sums (kPanels, columns, 16)
constexpr i64 kStrip = 64;
template <class W>
__attribute__((noinline)) void tile(const W* w, const typename W::Act* a, float* sums) {
    F acc[kPanels * kTile];
    for (int i = 0; i < kPanels * kTile; i++) acc[i] = load(sums + 16 * (i / kTile * kStrip + i % kTile));
    block_dot<W, kPanels, kTile>(w, a, acc);
    for (int i = 0; i < kPanels * kTile; i++) store(sums + 16 * (i / kTile * kStrip + i % kTile), acc[i]);
}

// Panels [p, p1), at most kPanels, times `count` columns: each block is unpacked once, sums wait in strips. Columns come in
// whole tiles (the activations are padded) and a missing panel is the last one again; neither is stored.
template <Type type>
void many_columns(const Matrix& w, i64 p, i64 p1, const typename Packed<type>::Act* a, i64 stride, i64 count, float* y) {
    alignas(64) float sums[16 * kStrip * kPanels] = {};
    alignas(64) Unpacked<type> blocks[kPanels];
    for (i64 b = 0; b < w.blocks; b++, a += stride) {
        for (i64 i = 0; i < kPanels; i++) {
            const uint8_t* block = w.panel(p + i < p1 ? p + i : p1 - 1) + b * packed_bytes(type);
            prefetch(block + packed_bytes(type), packed_bytes(type));
            blocks[i].open(block);
        }
        for (i64 c = 0; c < count; c += kTile) tile(blocks, a + c, sums + 16 * c);
    }
    for (i64 i = 0; i < p1 - p; i++) {
        for (i64 c = 0; c < count; c++)
            store_n(y + c * w.rows + kRows * (p + i), load(sums + 16 * (i * kStrip + c)), w.rows_of(p + i));
    }
}

template <Type type>
void linear(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y) {
    const auto* a = static_cast<const typename Packed<type>::Act*>(x);
    if (T > kFew) {
        for (i64 c = 0; c < T; c += kStrip) {
            const i64 count = T - c < kStrip ? T - c : kStrip;
            for (i64 p = p0; p < p1; p += kPanels) {
                many_columns<type>(w, p, p1 - p < kPanels ? p1 : p + kPanels, a + c, padded(T), count, y + c * w.rows);
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
        case Type::Q8_0:
            return linear<Type::Q8_0>(w, x, T, p0, p1, y);
        case Type::Q4_0:
            return linear<Type::Q4_0>(w, x, T, p0, p1, y);
        case Type::Q4_K:
            return linear<Type::Q4_K>(w, x, T, p0, p1, y);
        case Type::Q5_K:
            return linear<Type::Q5_K>(w, x, T, p0, p1, y);
        case Type::Q6_K:
            return linear<Type::Q6_K>(w, x, T, p0, p1, y);
        default:
            return;
    }
}
}  // namespace BISE_ISA
}  // namespace bise
