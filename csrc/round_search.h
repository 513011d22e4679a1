// The search of round.cpp: levels, scales and minima of sub-blocks that leave the least weighted squared error.
// x, w (n), q and everything that comes of them: one F is one value of each of 16 rows.
#pragma once
#include "round.h"
#include "simd.h"

namespace bise {
namespace {

constexpr int kAgain = 2;   // rounds of levels for a scale, scale for the levels, after the targets
constexpr int kSettle = 2;  // rounds of integers for a float16, float16 for the integers

BISE_INLINE F nearest(F x) {  // ties to even, for |x| < 2^22: the sum has no room for a fraction
    const F magic = set1(12582912.0f);
    return sub(add(x, magic), magic);
}
BISE_INLINE F magnitude(F x) { return max(x, sub(zero(), x)); }
BISE_INLINE F negative(F x) { return sub(zero(), x); }
BISE_INLINE F inverse(F x) { return where_above(magnitude(x), set1(1e-30f), div(set1(1.0f), x), zero()); }  // of 0: 0
BISE_INLINE F clamp(F x, float low, float high) { return min(max(x, set1(low)), set1(high)); }

// to float16 and back; its bits go to `to`
BISE_INLINE F halved(F x, uint16_t* to) {
    store_f16(to, add(x, zero()));  // (no negative zeros)
    return load_f16(to);
}

// Levels at equal distances.
template <int low_, int high_>
struct Linear {
    static constexpr float low = low_, high = high_;
    BISE_INLINE static F snap(F v) { return nearest(clamp(v, low, high)); }
};

// The sixteen levels of IQ4_NL and IQ4_XS.
struct Table {
    BISE_INLINE static F snap(F v) {
        constexpr float levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
        F level = set1(levels[0]);
        for (int i = 1; i < 16; i++) level = where_above(v, set1((levels[i - 1] + levels[i]) / 2), set1(levels[i]), level);
        return level;
    }
};

// Where the value of largest magnitude is tried.
struct Targets {
    float at[24] = {};
    int count = 0;
    constexpr void add(float target) { at[count++] = target; }
};

// At `first`, `step` more ... `last`, and at minus these, if that is not the same: levels from `low` to `high` are cut off on
// one side only.
constexpr Targets targets(float first, float last, float step, float low, float high, bool symmetric = true) {
    Targets t;
    for (float at = first; at <= last; at += step) {
        t.add(at);
        if (!symmetric || (low < 0 && at >= high + 0.5f)) t.add(-at);
    }
    return t;
}

// How much errors count: each column's by its own weight, or all alike.
struct Weighted {
    const F* w;
    BISE_INLINE F operator()(int i, F x) const { return mul(w[i], x); }
    BISE_INLINE Weighted from(int i) const { return {w + i}; }
};
struct Alike {
    BISE_INLINE F operator()(int, F x) const { return x; }
};

struct Fit {
    F scale, curve;  // error = error at its best + curve * (distance of the scale from there)^2
};

// The scale s and levels q of least sum w (x - s q)^2: for given levels s = sum w x q / sum w q^2, for a given s each level
// is the nearest. Tried from every target, then from the best of them on.
template <class Grid, int n, class W>
BISE_INLINE Fit fit(const F* x, W w, const Targets& targets) {
    F wx[n], top = zero(), size = zero();
    for (int i = 0; i < n; i++) {
        wx[i] = w(i, x[i]);
        const F a = magnitude(x[i]);
        top = where_above(a, size, x[i], top);
        size = max(size, a);
    }
    F scale = zero(), curve = zero(), best = zero();
    const auto attempt = [&](F r) BISE_LAMBDA {
        F a = zero(), c = zero();
        for (int i = 0; i < n; i++) {
            const F q = Grid::snap(mul(x[i], r));
            a = add(a, mul(wx[i], q));
            c = add(c, mul(w(i, q), q));
        }
        const F s = mul(a, inverse(c)), gain = mul(a, s);
        scale = where_above(gain, best, s, scale);
        curve = where_above(gain, best, c, curve);
        best = where_above(gain, best, gain, best);
    };
    const F unit = inverse(top);
    for (int i = 0; i < targets.count; i++) attempt(mul(set1(targets.at[i]), unit));
    for (int i = 0; i < kAgain; i++) attempt(inverse(scale));
    return {scale, curve};
}

// One scale for the whole block of n.
template <class Grid, int n, class W>
BISE_INLINE void round_single(const F* x, W w, const Targets& targets, F* q, Rounded& out) {
    const F r = inverse(halved(fit<Grid, n>(x, w, targets).scale, out.d));
    for (int i = 0; i < n; i++) q[i] = Grid::snap(mul(x[i], r));
}

// What a sub-block becomes with one integer scale: its error, and the sums that the block's own scale is fitted from.
struct Trial {
    F error, own, wqx, wqq;
    BISE_INLINE void keep_better(const Trial& o) {
        const F old = error;
        own = where_above(old, o.error, o.own, own);
        wqx = where_above(old, o.error, o.wqx, wqx);
        wqq = where_above(old, o.error, o.wqq, wqq);
        error = where_above(old, o.error, o.error, old);
    }
};

template <class Grid, int n>
BISE_INLINE Trial attempt(const F* x, Weighted w, F d, F own) {
    const F scale = mul(d, own), r = inverse(scale);
    Trial t = {zero(), own, zero(), zero()};
    for (int i = 0; i < n; i++) {
        const F q = Grid::snap(mul(x[i], r)), off = sub(x[i], mul(scale, q)), wq = w(i, q);
        t.error = add(t.error, mul(w(i, off), off));
        t.wqx = add(t.wqx, mul(wq, x[i]));
        t.wqq = add(t.wqq, mul(wq, q));
    }
    return t;
}

// A float16 scale for the block times an integer for each of its `subs` sub-blocks of n. The integers are to the scales of the
// sub-blocks what levels are to values, weighted by the curves. Then each integer may move by one, and the float16 is fitted
// again to what was chosen.
template <class Grid, class Scales, int subs, int n>
BISE_INLINE void round_nested(const F* x, Weighted w, const Targets& targets, const Targets& scale_targets, F* q, Rounded& out) {
    F s[subs], c[subs], k[subs];
    for (int j = 0; j < subs; j++) {
        const Fit f = fit<Grid, n>(x + j * n, w.from(j * n), targets);
        s[j] = f.scale, c[j] = f.curve;
    }
    F d = halved(fit<Scales, subs>(s, Weighted{c}, scale_targets).scale, out.d), r = inverse(d);
    for (int j = 0; j < subs; j++) k[j] = Scales::snap(mul(s[j], r));
    for (int again = 0; again < kSettle; again++) {
        F above = zero(), below = zero();
        for (int j = 0; j < subs; j++) {
            Trial best = attempt<Grid, n>(x + j * n, w.from(j * n), d, k[j]);
            for (float step : {-1.0f, 1.0f}) {
                const F own = clamp(add(k[j], set1(step)), Scales::low, Scales::high);
                best.keep_better(attempt<Grid, n>(x + j * n, w.from(j * n), d, own));
            }
            k[j] = best.own;
            above = add(above, mul(best.own, best.wqx));
            below = add(below, mul(mul(best.own, best.own), best.wqq));
        }
        d = halved(mul(above, inverse(below)), out.d);
    }
    for (int j = 0; j < subs; j++) {
        const F u = inverse(mul(d, k[j]));
        store_bytes(out.scale[j], round(k[j]));
        for (int i = j * n; i < j * n + n; i++) q[i] = Grid::snap(mul(x[i], u));
    }
}

}  // namespace
}  // namespace bise
