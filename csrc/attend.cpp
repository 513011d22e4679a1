// Attention of one group of query heads over a ring. Keys are walked in tiles of 32, aligned to absolute positions, ascending,
// with an online softmax per tile (Milakov & Gimelshein 2018): what one query sees is the same sums whatever the chunk that
// brought it. Ring sizes are multiples of 32, so a tile is contiguous slots. Slots that no query of the unit sees are never
// read; scores that one query does not see become -inf, and its sum over values skips them.
#include "isa.h"
#include "simd.h"

namespace bise {
namespace {

constexpr float kLowest = -__builtin_inff();

struct Scratch {    // rows = tokens x R query heads; wide = D rounded up to 16
    float* q;       // scaled queries, transposed in groups of rows: (D, n) from r * D on for the group of n rows at r
    float* out;     // (rows, wide) sums of values
    float* keys;    // (wide, 32) one tile of keys, transposed
    float* values;  // (32, wide)
    float* scores;  // (rows, 32)
    float* scales;  // (32, D/32) of Q8_0
    float* top;     // (rows) running maximum
    float* total;   // (rows, 16) running sums of weights, lane by lane
    Scratch(void* memory, i64 R, i64 wide) {
        const i64 rows = kQueries * R;
        float* p = static_cast<float*>(memory);
        const auto take = [&](i64 n) { return p += n, p - n; };
        q = take(rows * wide), out = take(rows * wide), keys = take(kKeys * wide), values = take(kKeys * wide);
        scores = take(rows * kKeys), scales = take(wide), top = take((rows + 15) / 16 * 16), total = take(16 * rows);
    }
};

// The D values of one slot.
template <Kv kv>
struct Slot {
    const uint8_t* p;
    const float* scales;  // (D/32), for Q8_0
    // slot `first + j` of a ring; all_scales (32, D/32) are those of a tile that starts at `first`
    BISE_INLINE Slot(const void* values, const float* all_scales, i64 first, i64 j, i64 D)
        : p(static_cast<const uint8_t*>(values) + (first + j) * D *
                                                      (kv == Kv::F32   ? 4
                                                       : kv == Kv::F16 ? 2
                                                                       : 1)),
          scales(all_scales + j * (D / 32)) {}
    // 16 of them, from i on
    BISE_INLINE F load16(i64 i) const {
        if constexpr (kv == Kv::F32)
            return load(reinterpret_cast<const float*>(p) + i);
        else if constexpr (kv == Kv::F16)
            return load_f16(reinterpret_cast<const uint16_t*>(p) + i);
        else
            return mul(load_i8(reinterpret_cast<const int8_t*>(p) + i), set1(scales[i / 32]));
    }
    // the last n of them, n < 16, then zeros (never Q8_0, whose D is a multiple of 32)
    BISE_INLINE F load_tail(i64 i, i64 n) const {
        constexpr size_t size = kv == Kv::F32 ? 4 : 2;
        alignas(64) uint8_t tail[64] = {};
        std::memcpy(tail, p + static_cast<size_t>(i) * size, static_cast<size_t>(n) * size);
        return kv == Kv::F32 ? load(reinterpret_cast<float*>(tail)) : load_f16(reinterpret_cast<uint16_t*>(tail));
    }
};

// Keys [half, half + 16) of the tile that starts at slot `first`, of which [lo, hi) are seen and the others become zeros
// -> (wide, 32) float32, transposed
template <Kv kv, bool all>
__attribute__((noinline)) void load_keys(const RingView& ring, i64 first, int half, int lo, int hi, const Scratch& s) {
    for (i64 i = 0; i < ring.D; i += 16) {
        F block[16];
        unroll<16>([&](auto j) BISE_LAMBDA {
            const Slot<kv> slot(ring.k, s.scales, first, half + j, ring.D);
            if (all)
                block[j] = slot.load16(i);
            else if (half + j < lo || hi <= half + j)
                block[j] = zero();
            else
                block[j] = i + 16 <= ring.D ? slot.load16(i) : slot.load_tail(i, ring.D - i);
            if constexpr (j % 4 == 3) transpose_four(block + j - 3);
        });
        transpose_fours(block);
        unroll<16>([&](auto j) BISE_LAMBDA { store(s.keys + (i + j) * kKeys + half, block[j]); });
    }
}

// Values [lo, hi) of the tile -> (32, wide) float32, zeros past D; the others are left as they were
template <Kv kv>
__attribute__((noinline)) void load_values(const RingView& ring, i64 first, int lo, int hi, i64 wide, const Scratch& s) {
    for (int j = lo; j < hi; j++) {
        const Slot<kv> slot(ring.v, s.scales, first, j, ring.D);
        float* to = s.values + j * wide;
        i64 i = 0;
        for (; i + 16 <= ring.D; i += 16) store(to + i, slot.load16(i));
        if (i < ring.D) store(to + i, slot.load_tail(i, ring.D - i));
    }
}

template <Kv kv>
void load_tile(const RingView& ring, i64 first, int lo, int hi, i64 wide, const Scratch& s) {
    const auto load_scales = [&](const uint16_t* scales) {
        for (i64 i = 0; kv == Kv::Q8_0 && i < ring.D; i += 16) store(s.scales + i, load_f16(scales + first * (ring.D / 32) + i));
    };
    load_scales(ring.k_scale);
    for (int half = 0; half < kKeys; half += 16) {
        const bool all = lo <= half && half + 16 <= hi && ring.D % 16 == 0;
        (all ? load_keys<kv, true> : load_keys<kv, false>)(ring, first, half, lo, hi, s);
    }
    load_scales(ring.v_scale);
    load_values<kv>(ring, first, lo, hi, wide, s);
}

// f(n, r) for each group of n rows: as many as fit a register tile, then what is left
template <class Fn>
BISE_INLINE void groups(i64 rows, Fn f) {
    i64 r = 0;
    for (; r + kQueryRows <= rows; r += kQueryRows) f(Constant<kQueryRows>{}, r);
    if constexpr (kQueryRows > 4)
        for (; r + 4 <= rows; r += 4) f(Constant<4>{}, r);
    for (; r < rows; r++) f(Constant<1>{}, r);
}

// scores (n, 32) = q (D, n) . keys (D, 32); each is one chain over D ascending
template <int n>
__attribute__((noinline)) void score_rows(const float* q, const float* keys, i64 D, float* scores) {
    F a[n], b[n];
    for (int r = 0; r < n; r++) a[r] = zero(), b[r] = zero();
    for (const float* end = keys + D * kKeys; keys < end; keys += kKeys, q += n) {
        const F ka = load(keys), kb = load(keys + 16);
        for (int r = 0; r < n; r++) {
            const F x = set1(q[r]);
            a[r] = fma(ka, x, a[r]), b[r] = fma(kb, x, b[r]);
        }
    }
    // (a loop would keep the sums in memory: GCC takes arrays apart before it unrolls)
    unroll<n>([&](auto r) BISE_LAMBDA { store(scores + r * kKeys, a[r]), store(scores + r * kKeys + 16, b[r]); });
}

// out (n heads, vecs * 16 of D) += weights (n, 32) . values (32, D), keys [lo, hi) ascending
template <int n, int vecs>
__attribute__((noinline)) void value_rows(const float* weights, const float* values, int lo, int hi, i64 wide, float* out) {
    F acc[n][vecs];
    unroll<n * vecs>([&](auto i) BISE_LAMBDA { acc[i / vecs][i % vecs] = load(out + i / vecs * wide + 16 * (i % vecs)); });
    for (int j = lo; j < hi; j++) {
        F v[vecs];
        for (int i = 0; i < vecs; i++) v[i] = load(values + j * wide + 16 * i);
        for (int r = 0; r < n; r++) {
            const F p = set1(weights[r * kKeys + j]);
            for (int i = 0; i < vecs; i++) acc[r][i] = fma(v[i], p, acc[r][i]);
        }
    }
    unroll<n * vecs>([&](auto i) BISE_LAMBDA { store(out + i / vecs * wide + 16 * (i % vecs), acc[i / vecs][i % vecs]); });
}

template <int n>
BISE_INLINE void value_heads(const float* weights, const float* values, int lo, int hi, i64 wide, float* out) {
    i64 i = 0;
    for (; i + 16 * kVecs <= wide; i += 16 * kVecs) value_rows<n, kVecs>(weights, values + i, lo, hi, wide, out + i);
    for (; i < wide; i += 16) value_rows<n, 1>(weights, values + i, lo, hi, wide, out + i);
}

// One row: scores of the tile to weights, and the running sums moved to the new maximum, if there is one.
BISE_INLINE void soften(float* scores, int lo, int hi, i64 wide, float* out, float& top, float* total) {
    for (int j = 0; j < lo; j++) scores[j] = kLowest;
    for (int j = hi; j < kKeys; j++) scores[j] = kLowest;
    const F a = load(scores), b = load(scores + 16), highest = max(a, b);
    if (any_above(highest, top)) {
        const float now = max_of(highest);
        alignas(64) float shrink[16];
        store(shrink, exp(set1(top - now)));
        const F by = set1(shrink[0]);
        store(total, mul(load(total), by));
        for (i64 i = 0; i < wide; i += 16) store(out + i, mul(load(out + i), by));
        top = now;
    }
    const F pa = exp(sub(a, set1(top))), pb = exp(sub(b, set1(top)));
    store(scores, pa), store(scores + 16, pb);
    store(total, add(load(total), add(pa, pb)));
}

struct Visible {  // keys [lo, hi) that the query at `position` sees, within the tile that starts at `base`
    int lo, hi;
    Visible(i64 position, i64 window, i64 base) {
        const i64 oldest = position - window + 1 - base, newest = position + 1 - base;
        lo = static_cast<int>(oldest < 0 ? 0 : oldest > kKeys ? kKeys : oldest);
        hi = static_cast<int>(newest < 0 ? 0 : newest > kKeys ? kKeys : newest);
    }
    bool any() const { return lo < hi; }
};

template <Kv kv>
void attend_tile(const RingView& ring, const Queries& u, i64 R, i64 window, i64 base, i64 wide, const Scratch& s) {
    i64 t0 = 0, t1 = u.count;  // the queries that see anything here
    while (t0 < t1 && !Visible(u.position + t0, window, base).any()) t0++;
    while (t1 > t0 && !Visible(u.position + t1 - 1, window, base).any()) t1--;
    if (t0 == t1) return;
    const Visible first(u.position + t0, window, base), last(u.position + t1 - 1, window, base);
    load_tile<kv>(ring, (u.sequence * ring.G + u.g) * ring.N + base % ring.N, first.lo, last.hi, wide, s);

    groups(u.count * R, [&](auto n, i64 r) {
        if (r + n > t0 * R && r < t1 * R) score_rows<n>(s.q + r * ring.D, s.keys, ring.D, s.scores + r * kKeys);
    });
    for (i64 t = t0; t < t1; t++) {
        const Visible see(u.position + t, window, base);
        for (i64 r = t * R; r < (t + 1) * R; r++)
            soften(s.scores + r * kKeys, see.lo, see.hi, wide, s.out + r * wide, s.top[r], s.total + 16 * r);
        i64 r = t * R;
        const i64 heads = (t + 1) * R;
        for (; r + kHeads <= heads; r += kHeads)
            value_heads<kHeads>(s.scores + r * kKeys, s.values, see.lo, see.hi, wide, s.out + r * wide);
        for (; r < heads; r++) value_heads<1>(s.scores + r * kKeys, s.values, see.lo, see.hi, wide, s.out + r * wide);
    }
}

template <Kv kv>
void attend(const RingView& ring, const Queries& u, i64 R, i64 window, const float* q, float* out, void* scratch) {
    const i64 D = ring.D, wide = (D + 15) / 16 * 16;
    const Scratch s(scratch, R, wide);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(D));
    const auto at = [&](i64 r) { return (((u.row + r / R) * ring.G + u.g) * R + r % R) * D; };
    groups(u.count * R, [&](auto n, i64 r) {
        for (int i = 0; i < n; i++) {
            const float* from = q + at(r + i);
            for (i64 d = 0; d < D; d++) s.q[r * D + d * n + i] = from[d] * scale;
        }
    });
    for (i64 r = 0; r < u.count * R; r++) {
        for (i64 d = 0; d < wide; d++) s.out[r * wide + d] = 0;
        s.top[r] = kLowest, store(s.total + 16 * r, zero());
    }
    const i64 last = u.position + u.count - 1, oldest = u.position - window + 1;
    for (i64 base = (oldest > 0 ? oldest : 0) / kKeys * kKeys; base <= last; base += kKeys) {
        attend_tile<kv>(ring, u, R, window, base, wide, s);
    }
    for (i64 r = 0; r < u.count * R; r++) {
        float* to = out + at(r);
        const float total = sum(load(s.total + 16 * r));
        for (i64 d = 0; d < D; d++) to[d] = s.out[r * wide + d] / total;
    }
}

}  // namespace

namespace BISE_ISA {
void attend(const RingView& ring, const Queries& unit, i64 R, i64 window, const float* q, float* out, void* scratch) {
    switch (ring.kv) {
        case Kv::F32:
            return bise::attend<Kv::F32>(ring, unit, R, window, q, out, scratch);
        case Kv::F16:
            return bise::attend<Kv::F16>(ring, unit, R, window, q, out, scratch);
        case Kv::Q8_0:
            return bise::attend<Kv::Q8_0>(ring, unit, R, window, q, out, scratch);
    }
}
}  // namespace BISE_ISA
}  // namespace bise
