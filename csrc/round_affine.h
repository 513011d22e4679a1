// The search of round.cpp for types with minima: x is near scale * q + base, q from 0 to `top`.
#pragma once
#include "round_search.h"

namespace bise {
namespace {

// Sums over a sub-block for given levels.
struct Sums {
    F w, wx, wq, wqq, wqx;
};

struct Line {
    F scale, base, curve;  // curve: of the error over the scale, where the base follows it
};

// The levels of values from `base` on, with 1 / scale = r, and their sums.
template <int top, int n, class W>
BISE_INLINE void add_up(const F* x, W w, F base, F r, Sums& s) {
    s.wq = s.wqq = s.wqx = zero();
    for (int i = 0; i < n; i++) {
        const F q = nearest(clamp(mul(sub(x[i], base), r), 0, top)), wq = w(i, q);
        s.wq = add(s.wq, wq);
        s.wqq = add(s.wqq, mul(wq, q));
        s.wqx = add(s.wqx, mul(wq, x[i]));
    }
}

// a / b where the determinant b of two equations, the difference of a product from `whole`, can be told from rounding
BISE_INLINE F over(F det, F whole) { return where_above(det, mul(set1(1e-6f), whole), inverse(det), zero()); }

// Least squares of both for given levels; a base above zero is only for types that store one with its sign. The others have
// the scale alone, and its own curve, also where all levels are alike.
template <bool any_sign>
BISE_INLINE Line solve(const Sums& s) {
    const F whole = mul(s.w, s.wqq), r = over(sub(whole, mul(s.wq, s.wq)), whole);
    F scale = mul(sub(mul(s.w, s.wqx), mul(s.wq, s.wx)), r), base = mul(sub(mul(s.wqq, s.wx), mul(s.wq, s.wqx)), r);
    F curve = sub(s.wqq, mul(mul(s.wq, s.wq), inverse(s.w)));
    if (!any_sign) {
        const F alone = mul(s.wqx, inverse(s.wqq));
        scale = where_above(r, zero(), where_above(base, zero(), alone, scale), alone);
        curve = where_above(r, zero(), where_above(base, zero(), s.wqq, curve), s.wqq);
        base = min(base, zero());
    }
    return {scale, base, curve};
}

// Where levels are tried: by how many the values reach beyond them, and how far from the middle, in levels.
struct Places {
    float beyond[20] = {}, aside[20] = {};
    int count = 0;
};
constexpr Places every_place() {
    Places p;
    for (float beyond : {-1.75f, -1.0f, -0.25f, 0.5f, 1.25f})
        for (float aside : {-0.375f, -0.125f, 0.125f, 0.375f}) p.beyond[p.count] = beyond, p.aside[p.count++] = aside;
    return p;
}
constexpr Places kPlaces = every_place();
// where all errors count alike
constexpr Places kFewPlaces = {{0.25f, 0.25f, 0.25f, -0.75f, -0.75f, -1.75f}, {-0.25f, 0, 0.25f, -0.375f, 0.375f, 0}, 6};

template <int top, int n, bool any_sign, class W>
BISE_INLINE Line fit_line(const F* x, W w, const Places& places, Sums& s) {
    F low = x[0], high = x[0];
    s.w = s.wx = zero();
    for (int i = 0; i < n; i++) {
        low = min(low, x[i]), high = max(high, x[i]);
        s.w = add(s.w, w(i, set1(1.0f)));
        s.wx = add(s.wx, w(i, x[i]));
    }
    F mean = mul(s.wx, inverse(s.w));
    if (!any_sign) low = min(low, zero()), mean = min(mean, zero());
    Line line = {zero(), mean, zero()};  // all values alike
    F best = mul(mean, s.wx);
    const auto attempt = [&](F base, F r) BISE_LAMBDA {
        add_up<top, n>(x, w, base, r, s);
        const Line found = solve<any_sign>(s);
        F gain = add(mul(found.scale, s.wqx), mul(found.base, s.wx));
        gain = where_above(found.scale, zero(), gain, zero());
        line.scale = where_above(gain, best, found.scale, line.scale);
        line.base = where_above(gain, best, found.base, line.base);
        line.curve = where_above(gain, best, found.curve, line.curve);
        best = where_above(gain, best, gain, best);
    };
    const F span = sub(high, low), unit = inverse(span);
    for (int i = 0; i < places.count; i++) {
        const float levels = top + places.beyond[i], from = places.beyond[i] / 2 + places.aside[i];
        attempt(add(low, mul(set1(from / levels), span)), mul(set1(levels), unit));
    }
    for (int i = 0; i < kAgain; i++) attempt(line.base, inverse(line.scale));
    return line;
}

// One scale and one minimum, of any sign, for the whole block of n.
template <int top, int n, class W>
BISE_INLINE void round_line(const F* x, W w, const Places& places, F* q, Rounded& out) {
    Sums s;
    const Line line = fit_line<top, n, true>(x, w, places, s);
    const F r = inverse(halved(line.scale, out.d)), base = halved(line.base, out.least);
    for (int i = 0; i < n; i++) q[i] = nearest(clamp(mul(sub(x[i], base), r), 0, top));
}

// The best that a sub-block becomes with one integer scale: the minimum follows the levels, the levels follow the minimum.
struct LineTrial {
    F error, own, minimum;
    Sums s;
};

template <int top, int most, int n>
BISE_INLINE LineTrial attempt_line(const F* x, Weighted w, F d, F least, F own, F minimum, Sums s) {
    const F scale = mul(d, own), r = inverse(scale);
    add_up<top, n>(x, w, negative(mul(least, minimum)), r, s);
    const F base = mul(sub(s.wx, mul(scale, s.wq)), inverse(s.w));
    minimum = nearest(clamp(mul(negative(base), inverse(least)), 0, most));
    const F low = negative(mul(least, minimum));
    F error = zero();
    s.wq = s.wqq = s.wqx = zero();
    for (int i = 0; i < n; i++) {
        const F up = sub(x[i], low), q = nearest(clamp(mul(up, r), 0, top)), wq = w(i, q), off = sub(up, mul(scale, q));
        error = add(error, mul(w(i, off), off));
        s.wq = add(s.wq, wq);
        s.wqq = add(s.wqq, mul(wq, q));
        s.wqx = add(s.wqx, mul(wq, x[i]));
    }
    return {error, own, minimum, s};
}

BISE_INLINE void keep_better(LineTrial& t, const LineTrial& o) {
    const F old = t.error;
    const auto choose = [&](F& mine, F other) BISE_LAMBDA { mine = where_above(old, o.error, other, mine); };
    choose(t.own, o.own), choose(t.minimum, o.minimum);
    choose(t.s.wq, o.s.wq), choose(t.s.wqq, o.s.wqq), choose(t.s.wqx, o.s.wqx), choose(t.error, o.error);
}

// The equations of both float16 for given integers: x is near d (scale q) - least minimum.
struct Pair {
    F aa = zero(), ab = zero(), bb = zero(), u = zero(), v = zero();
    BISE_INLINE void count(const LineTrial& t) {
        aa = add(aa, mul(mul(t.own, t.own), t.s.wqq));
        ab = add(ab, mul(mul(t.own, t.minimum), t.s.wq));
        bb = add(bb, mul(mul(t.minimum, t.minimum), t.s.w));
        u = add(u, mul(t.own, t.s.wqx));
        v = add(v, mul(t.minimum, t.s.wx));
    }
    // where they cannot be told apart, or the minimum would be negative, `least` stays
    BISE_INLINE void solve(F& d, F& least) const {
        const F whole = mul(aa, bb), r = over(sub(whole, mul(ab, ab)), whole);
        const F both = mul(sub(mul(bb, u), mul(ab, v)), r), other = mul(sub(mul(ab, u), mul(aa, v)), r);
        d = where_above(other, zero(), both, mul(add(u, mul(least, ab)), inverse(aa)));
        least = where_above(other, zero(), other, least);
    }
};

// As round_nested, with a second float16 and second integers for the minima.
template <int top, int most, int subs, int n>
BISE_INLINE void round_nested_lines(const F* x, Weighted w, const Targets& scale_targets, F* q, Rounded& out) {
    using Integers = Linear<0, most>;
    F s[subs], c[subs], k[subs], m[subs], weight[subs];
    Sums sums[subs];
    Line line[subs];
    for (int j = 0; j < subs; j++) {
        line[j] = fit_line<top, n, false>(x + j * n, w.from(j * n), kPlaces, sums[j]);
        s[j] = line[j].scale, c[j] = line[j].curve;
    }
    F d = halved(fit<Integers, subs>(s, Weighted{c}, scale_targets).scale, out.d), r = inverse(d);
    for (int j = 0; j < subs; j++) {  // the best minimum beside the scale as it has become
        k[j] = Integers::snap(mul(s[j], r));
        const F scale = mul(d, k[j]);
        add_up<top, n>(x + j * n, w.from(j * n), line[j].base, inverse(scale), sums[j]);
        m[j] = max(mul(sub(mul(scale, sums[j].wq), sums[j].wx), inverse(sums[j].w)), zero());
        weight[j] = sums[j].w;
    }
    F least = halved(fit<Integers, subs>(m, Weighted{weight}, scale_targets).scale, out.least);
    r = inverse(least);
    for (int j = 0; j < subs; j++) m[j] = Integers::snap(mul(m[j], r));
    for (int again = 0; again < kSettle; again++) {
        Pair pair;
        for (int j = 0; j < subs; j++) {
            const auto with = [&](float step) BISE_LAMBDA {
                const F own = clamp(add(k[j], set1(step)), 0, most);
                return attempt_line<top, most, n>(x + j * n, w.from(j * n), d, least, own, m[j], sums[j]);
            };
            LineTrial best = with(0);
            keep_better(best, with(-1)), keep_better(best, with(1));
            k[j] = best.own, m[j] = best.minimum;
            pair.count(best);
        }
        pair.solve(d, least);
        d = halved(d, out.d), least = halved(least, out.least);
    }
    for (int j = 0; j < subs; j++) {
        const F u = inverse(mul(d, k[j])), low = negative(mul(least, m[j]));
        store_bytes(out.scale[j], round(k[j])), store_bytes(out.minimum[j], round(m[j]));
        for (int i = j * n; i < j * n + n; i++) q[i] = nearest(clamp(mul(sub(x[i], low), u), 0, top));
    }
}

}  // namespace
}  // namespace bise
