// Attention of one group of query heads over a ring. Keys are walked in tiles of 32, aligned to absolute positions, ascending,
// with an online softmax per tile (Milakov & Gimelshein 2018): what one query sees is the same sums whatever the chunk that
// brought it. Ring sizes are multiples of 32, so a tile is contiguous slots. Slots that no query of the unit sees are never
// read; scores that one query does not see become -inf, and its sum over values skips them.
#include "isa.h"
#include "simd.h"

namespace bise {
namespace {

constexpr float kLowest = -__builtin_inff();

struct Scratch {  // rows = tokens x R query heads; wide = D rounded up to 16
    float *q;       // (rows, wide) scaled queries
    float *out;     // (rows, wide) sums of values
    float *keys;    // (wide, 32) one tile of keys, transposed
    float *values;  // (32, wide)
    float *scores;  // (rows, 32)
    float *top, *total;  // (rows) running maximum and sum of weights
    Scratch(void* memory, i64 R, i64 wide) {
        const i64 rows = kQueries * R;
        float* p = static_cast<float*>(memory);
        const auto take = [&](i64 n) { return p += n, p - n; };
        q = take(rows * wide), out = take(rows * wide), keys = take(kKeys * wide), values = take(kKeys * wide);
        scores = take(rows * kKeys), top = take((rows + 15) / 16 * 16), total = take((rows + 15) / 16 * 16);
    }
};

// 16 of the D values of one slot, from i on, zeros past D
template <Kv kv>
BISE_INLINE F ring16(const void* values, const uint16_t* scales, i64 slot, i64 D, i64 i) {
    const i64 at = slot * D + i;
    if constexpr (kv == Kv::Q8_0) {
        alignas(64) uint16_t half[16];
        for (auto& h : half) h = scales[at / 32];
        return mul(load_i8(static_cast<const int8_t*>(values) + at), load_f16(half));
    } else if constexpr (kv == Kv::F16) {
        const uint16_t* p = static_cast<const uint16_t*>(values) + at;
        if (i + 16 <= D) return load_f16(p);
        alignas(64) uint16_t tail[16] = {};
        std::memcpy(tail, p, sizeof(uint16_t) * static_cast<size_t>(D - i));
        return load_f16(tail);
    } else {
        const float* p = static_cast<const float*>(values) + at;
        return i + 16 <= D ? load(p) : load_n(p, static_cast<int>(D - i));
    }
}

// Slots [lo, hi) of the tile that starts at slot `first`, as float32; the others become zeros.
template <Kv kv>
void load_tile(const RingView& ring, i64 first, int lo, int hi, i64 wide, const Scratch& s) {
    for (int half = 0; half < 32; half += 16) {
        for (i64 i = 0; i < wide; i += 16) {
            F block[16];
            for (int j = 0; j < 16; j++) {
                const bool seen = lo <= half + j && half + j < hi;
                block[j] = seen ? ring16<kv>(ring.k, ring.k_scale, first + half + j, ring.D, i) : zero();
            }
            transpose(block);
            for (int j = 0; j < 16; j++) store(s.keys + (i + j) * kKeys + half, block[j]);
        }
    }
    for (int j = lo; j < hi; j++) {
        for (i64 i = 0; i < wide; i += 16) store(s.values + j * wide + i, ring16<kv>(ring.v, ring.v_scale, first + j, ring.D, i));
    }
}

// scores (n, 32) = q (n, D) . keys (D, 32); each is one chain over D ascending
template <int n>
BISE_INLINE void score_rows(const float* q, const float* keys, i64 D, i64 wide, float* scores) {
    F a[n], b[n];
    for (int r = 0; r < n; r++) a[r] = zero(), b[r] = zero();
    for (i64 d = 0; d < D; d++) {
        const F ka = load(keys + d * kKeys), kb = load(keys + d * kKeys + 16);
        for (int r = 0; r < n; r++) {
            const F x = set1(q[r * wide + d]);
            a[r] = fma(ka, x, a[r]), b[r] = fma(kb, x, b[r]);
        }
    }
    for (int r = 0; r < n; r++) store(scores + r * kKeys, a[r]), store(scores + r * kKeys + 16, b[r]);
}

// out (n heads, vecs * 16 of D) += weights (n, 32) . values (32, D), keys [lo, hi) ascending
template <int n, int vecs>
BISE_INLINE void value_rows(const float* weights, const float* values, int lo, int hi, i64 wide, float* out) {
    F acc[n][vecs];
    for (int r = 0; r < n; r++)
        for (int i = 0; i < vecs; i++) acc[r][i] = load(out + r * wide + 16 * i);
    for (int j = lo; j < hi; j++) {
        F v[vecs];
        for (int i = 0; i < vecs; i++) v[i] = load(values + j * wide + 16 * i);
        for (int r = 0; r < n; r++) {
            const F p = set1(weights[r * kKeys + j]);
            for (int i = 0; i < vecs; i++) acc[r][i] = fma(v[i], p, acc[r][i]);
        }
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < vecs; i++) store(out + r * wide + 16 * i, acc[r][i]);
}

template <int n>
BISE_INLINE void value_heads(const float* weights, const float* values, int lo, int hi, i64 wide, float* out) {
    i64 i = 0;
    for (; i + 16 * kVecs <= wide; i += 16 * kVecs) value_rows<n, kVecs>(weights, values + i, lo, hi, wide, out + i);
    for (; i < wide; i += 16) value_rows<n, 1>(weights, values + i, lo, hi, wide, out + i);
}

// One row: scores of the tile to weights, and the running sums moved to the new maximum.
BISE_INLINE void soften(float* scores, int lo, int hi, i64 wide, float* out, float& top, float& total) {
    for (int j = 0; j < lo; j++) scores[j] = kLowest;
    for (int j = hi; j < kKeys; j++) scores[j] = kLowest;
    const F a = load(scores), b = load(scores + 16);
    const float highest = max_of(max(a, b)), now = highest > top ? highest : top;
    const F pa = exp(sub(a, set1(now))), pb = exp(sub(b, set1(now)));
    store(scores, pa), store(scores + 16, pb);
    const float weight = sum(add(pa, pb));
    if (now == top) {
        total += weight;
        return;
    }
    alignas(64) float shrink[16];
    store(shrink, exp(set1(top - now)));
    total = total * shrink[0] + weight;
    for (i64 i = 0; i < wide; i += 16) store(out + i, mul(load(out + i), set1(shrink[0])));
    top = now;
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

    i64 r = t0 * R;
    const i64 end = t1 * R;
    const auto score = [&](auto n) { score_rows<n>(s.q + r * wide, s.keys, ring.D, wide, s.scores + r * kKeys), r += n; };
    while (r + kQueryRows <= end) score(std::integral_constant<int, kQueryRows>{});
    if constexpr (kQueryRows > 4) while (r + 4 <= end) score(std::integral_constant<int, 4>{});
    while (r < end) score(std::integral_constant<int, 1>{});

    for (i64 t = t0; t < t1; t++) {
        const Visible see(u.position + t, window, base);
        for (r = t * R; r < (t + 1) * R; r++) soften(s.scores + r * kKeys, see.lo, see.hi, wide, s.out + r * wide, s.top[r], s.total[r]);
        r = t * R;
        const i64 heads = (t + 1) * R;
        for (; r + kHeads <= heads; r += kHeads) value_heads<kHeads>(s.scores + r * kKeys, s.values, see.lo, see.hi, wide, s.out + r * wide);
        for (; r < heads; r++) value_heads<1>(s.scores + r * kKeys, s.values, see.lo, see.hi, wide, s.out + r * wide);
    }
}

template <Kv kv>
void attend(const RingView& ring, const Queries& u, i64 R, i64 window, const float* q, float* out, void* scratch) {
    const i64 D = ring.D, wide = (D + 15) / 16 * 16;
    const Scratch s(scratch, R, wide);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(D));
    for (i64 r = 0; r < u.count * R; r++) {
        const float* from = q + (((u.row + r / R) * ring.G + u.g) * R + r % R) * D;
        for (i64 d = 0; d < D; d++) s.q[r * wide + d] = from[d] * scale;
        for (i64 d = 0; d < wide; d++) s.out[r * wide + d] = 0;
        s.top[r] = kLowest, s.total[r] = 0;
    }
    const i64 last = u.position + u.count - 1, oldest = u.position - window + 1;
    for (i64 base = (oldest > 0 ? oldest : 0) / kKeys * kKeys; base <= last; base += kKeys) {
        attend_tile<kv>(ring, u, R, window, base, wide, s);
    }
    for (i64 r = 0; r < u.count * R; r++) {
        float* to = out + (((u.row + r / R) * ring.G + u.g) * R + r % R) * D;
        for (i64 d = 0; d < D; d++) to[d] = s.out[r * wide + d] / s.total[r];
    }
}

}  // namespace

namespace BISE_ISA {
void attend(const RingView& ring, const Queries& unit, i64 R, i64 window, const float* q, float* out, void* scratch) {
    switch (ring.kv) {
        case Kv::F32: return bise::attend<Kv::F32>(ring, unit, R, window, q, out, scratch);
        case Kv::F16: return bise::attend<Kv::F16>(ring, unit, R, window, q, out, scratch);
        case Kv::Q8_0: return bise::attend<Kv::Q8_0>(ring, unit, R, window, q, out, scratch);
    }
}
}  // namespace BISE_ISA
}  // namespace bise
