// Quantised weights times quantised activations. The float operations that one (row, token) sees come in one order whatever
// the number of columns, tiles and threads: blocks ascending, and within a block its scale groups ascending.
#include "isa.h"
#include "packed.h"

namespace bise {
namespace {

// sum over the groups of a block: minimum (or, for an offset, scale) times the sum of activations
template <class W>
BISE_INLINE I minima_dot(const W& w, const Act256& a) {
    I m = zero_i();
    if constexpr (W::minima_count == 8)
        unroll<8>([&](auto i) BISE_LAMBDA { m = dot2(m, w.minima(i), a.pairs[i]); });
    else
        unroll<4>([&](auto i) BISE_LAMBDA { m = dot2(m, w.minima(i), a.minima[i]); });
    return m;
}

// where the sum over the quants [j, j + per_scale) starts
template <class W, int j>
BISE_INLINE Part start(const Act256& a) {
    if constexpr (W::offset == 32)
        return part(a.offset[j / 4]);
    else if constexpr (W::offset == 128)  // -128 times a sum over 32, one of the pairs (0,2) (1,3) (4,6) (5,7)
        return dot2(zero_i(), set1_i(j / 16 % 2 ? -128 * 65536 : 0xff80), a.minima[j / 32 * 2 + j / 8 % 2]);
    else
        return part(0);
}

// acc[p * n + c] += a block of panel p times a block of column c, for P panels and n columns: here by 256 columns
template <class W, int P, int n>
BISE_INLINE void block_dot(const W* w, const Act256* a, F* acc) {
    constexpr int step = W::per_scale < dots_per_part(W::top) ? W::per_scale : dots_per_part(W::top);
    Sum sums[P * n];
    for (int i = 0; i < P * n; i++) sums[i] = sum_zero();
    unroll<64 / step>([&](auto i) BISE_LAMBDA {
        Part parts[P * n];
        Scale scales[P];
        for (int c = 0; c < P * n; c++) parts[c] = start<W, i * step>(a[c % n]);
        for (int p = 0; p < P; p++) scales[p] = w[p].scaled(Constant<i * step / W::per_scale>{});
        unroll<step>([&](auto k) BISE_LAMBDA {
            constexpr Constant<i * step + k> j;
            I q[P];
            for (int p = 0; p < P; p++) q[p] = w[p].quant(j);
            for (int c = 0; c < n; c++) {
                for (int p = 0; p < P; p++) {
                    if constexpr (kNarrow && W::is_signed)
                        sums[p * n + c] = dot_signed<j>(sums[p * n + c], q[p], a[c].q, scales[p]);
                    else
                        parts[p * n + c] = dot<j>(parts[p * n + c], q[p], a[c].q);
                }
            }
        });
        if constexpr (!(kNarrow && W::is_signed))
            for (int i = 0; i < P * n; i++) sums[i] = add_scaled(sums[i], parts[i], scales[i / n]);
    });
    for (int p = 0; p < P; p++) {
        const F d = w[p].d(), dmin = w[p].dmin();
        for (int c = 0; c < n; c++) {
            F x = mul(d, sum_float(sums[p * n + c]));
            if constexpr (W::minima_count != 0) x = fnma(dmin, to_float(minima_dot(w[p], a[c])), x);
            acc[p * n + c] = fma(x, set1(a[c].d), acc[p * n + c]);
        }
    }
}

// the same by 32 columns
template <class W, int P, int n>
BISE_INLINE void block_dot(const W* w, const Act32* a, F* acc) {
    const auto offset = [&](int c, int s)
                            BISE_LAMBDA { return W::offset == 128 ? a[c].offset128[s] : W::offset / 8 * a[c].offset8[s]; };
    unroll<8>([&](auto s) BISE_LAMBDA {
        Part parts[P * n];
        for (int c = 0; c < P * n; c++) parts[c] = part(offset(c % n, s));
        unroll<8>([&](auto k) BISE_LAMBDA {
            constexpr Constant<8 * s + k> j;
            I q[P];
            for (int p = 0; p < P; p++) q[p] = w[p].quant(j);
            for (int c = 0; c < n; c++) {
                for (int p = 0; p < P; p++) {
                    Part& sum = parts[p * n + c];
                    if constexpr (kNarrow && W::is_signed)
                        sum = dot_signed<j>(sum, q[p], a[c].q, set1_i(0x00010001));
                    else
                        sum = dot<j>(sum, q[p], a[c].q);
                }
            }
        });
        for (int p = 0; p < P; p++) {
            const F d = w[p].d(s);
            for (int c = 0; c < n; c++) {
                I total = kNarrow && W::is_signed ? parts[p * n + c] : part_total(parts[p * n + c]);
                if constexpr (kNarrow && W::offset != 0) total = add_i(total, set1_i(offset(c, s)));
                acc[p * n + c] = fma(mul(to_float(total), d), set1(a[c].d[s]), acc[p * n + c]);
                if constexpr (W::has_minima) acc[p * n + c] = fma(w[p].m(s), set1(a[c].sum[s]), acc[p * n + c]);
            }
        }
    });
}

// Asks for the bytes of a block that comes later, in the first- or second-level cache: the processor's own prefetcher stops at
// the end of each page. The second level has more requests under way at a time: what streams from memory asks there.
constexpr i64 kAhead = 4096;
template <int level>
BISE_INLINE void prefetch(const uint8_t* p, i64 bytes) {
    for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 4 - level);
}

// one panel times `count` columns of n, straight from the packed bytes; sums stay in registers
template <Type type, int n>
void columns(const Matrix& w, i64 p, const typename Packed<type>::Act* a, i64 count, float* y) {
    const uint8_t* panel = w.panel(p);
    F acc[n];
    for (int c = 0; c < n; c++) acc[c] = zero();
    for (i64 b = 0; b < w.blocks; b++, panel += packed_bytes(type), a += n) {
        prefetch<2>(panel + kAhead, packed_bytes(type));
        const Packed<type> w1(panel);
        block_dot<Packed<type>, 1, n>(&w1, a, acc);
    }
    for (int c = 0; c < count; c++) store_n(y + c * w.stride + kRows * p, acc[c], w.rows_of(p));
}

// kPanels panels times n columns of their strips of sums (kPanels, columns, 16)
constexpr i64 kStrip = 48;
template <class W, int n>
__attribute__((noinline)) void tile(const W* w, const typename W::Act* a, float* sums) {
    F acc[kPanels * n];
    for (int i = 0; i < kPanels * n; i++) acc[i] = load(sums + 16 * (i / n * kStrip + i % n));
    block_dot<W, kPanels, n>(w, a, acc);
    for (int i = 0; i < kPanels * n; i++) store(sums + 16 * (i / n * kStrip + i % n), acc[i]);
}

// Panels [p, p1), at most kPanels, times `count` columns: each block is unpacked once, sums wait in strips. Columns come in
// whole tiles (the activations are padded) and a missing panel is the last one again; neither is stored.
template <Type type>
void many_columns(const Matrix& w, i64 p, i64 p1, const typename Packed<type>::Act* a, i64 stride, i64 count, float* y) {
    alignas(64) float sums[16 * kStrip * kPanels] = {};
    Unpacked<type> blocks[kPanels];
    for (i64 b = 0; b < w.blocks; b++, a += stride) {
        for (i64 i = 0; i < kPanels; i++) {
            const uint8_t* block = w.panel(p + i < p1 ? p + i : p1 - 1) + b * packed_bytes(type);
            prefetch<1>(block + packed_bytes(type), packed_bytes(type));
            blocks[i].open(block);
        }
        for (i64 c = 0; c < count;) {
            const i64 left = count - c;
            if (left > 2 * kRest || (kRest < left && left <= kTile))
                tile<Unpacked<type>, kTile>(blocks, a + c, sums + 16 * c), c += kTile;
            else
                tile<Unpacked<type>, kRest>(blocks, a + c, sums + 16 * c), c += kRest;
        }
    }
    for (i64 i = 0; i < p1 - p; i++) {
        for (i64 c = 0; c < count; c++)
            store_n(y + c * w.stride + kRows * (p + i), load(sums + 16 * (i * kStrip + c)), w.rows_of(p + i));
    }
}

template <Type type>
void linear(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y) {
    const auto* a = static_cast<const typename Packed<type>::Act*>(x);
    if (T <= kFew) {
        const auto columns_of = T == 1 ? columns<type, 1> : T == 2 ? columns<type, 2> : columns<type, 4>;
        for (i64 p = p0; p < p1; p++) columns_of(w, p, a, T, y);
        return;
    }
    for (i64 c = 0; c < T; c += kStrip) {
        const i64 count = T - c < kStrip ? T - c : kStrip;
        for (i64 p = p0; p < p1; p += kPanels) {
            many_columns<type>(w, p, p1 - p < kPanels ? p1 : p + kPanels, a + c, padded(T), count, y + c * w.stride);
        }
    }
}

}  // namespace

namespace BISE_ISA {
void linear_quants(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y) {
    switch (w.type) {
        case Type::Q8_0:
            return linear<Type::Q8_0>(w, x, T, p0, p1, y);
        case Type::Q4_0:
            return linear<Type::Q4_0>(w, x, T, p0, p1, y);
        case Type::Q4_1:
            return linear<Type::Q4_1>(w, x, T, p0, p1, y);
        case Type::Q5_0:
            return linear<Type::Q5_0>(w, x, T, p0, p1, y);
        case Type::Q5_1:
            return linear<Type::Q5_1>(w, x, T, p0, p1, y);
        case Type::IQ4_NL:
            return linear<Type::IQ4_NL>(w, x, T, p0, p1, y);
        case Type::Q2_K:
            return linear<Type::Q2_K>(w, x, T, p0, p1, y);
        case Type::Q3_K:
            return linear<Type::Q3_K>(w, x, T, p0, p1, y);
        case Type::Q4_K:
            return linear<Type::Q4_K>(w, x, T, p0, p1, y);
        case Type::Q5_K:
            return linear<Type::Q5_K>(w, x, T, p0, p1, y);
        case Type::Q6_K:
            return linear<Type::Q6_K>(w, x, T, p0, p1, y);
        case Type::IQ4_XS:
            return linear<Type::IQ4_XS>(w, x, T, p0, p1, y);
        default:
            return;
    }
}
}  // namespace BISE_ISA
}  // namespace bise
