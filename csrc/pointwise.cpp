// The verbs that touch each number once: rms_norm, rope, swiglu, and writing keys and values into a ring.
#include "isa.h"
#include "simd.h"

namespace bise {
namespace {

// x (D) -> D/32 blocks of int8 with float16 scales max|x| / 127; divided by the scale as it is stored
BISE_INLINE void store_q8(const float* x, i64 D, int8_t* q, uint16_t* scales) {
    for (i64 i = 0; i < D; i += 32) {
        const F a = load(x + i), b = load(x + i + 16), lowest = set1(-127.0f), highest = set1(127.0f);
        const float amax = max_of(max(max(a, sub(zero(), a)), max(b, sub(zero(), b))));
        alignas(64) uint16_t half[16];
        store_f16(half, set1(amax / 127.0f));
        scales[i / 32] = half[0];
        const float scale = max_of(load_f16(half));
        const bool sound = scale > 0 && __builtin_isfinite(scale);
        for (int j = 0; j < 2; j++) {
            const F z = sound ? max(lowest, min(highest, div(j ? b : a, set1(scale)))) : zero();
            store_bytes(q + i + 16 * j, round(z));
        }
    }
}

BISE_INLINE void store_vector(const RingView& ring, i64 at, const float* x, void* values, uint16_t* scales) {
    const i64 D = ring.D;
    if (ring.kv == Kv::F32) {
        std::memcpy(static_cast<float*>(values) + at * D, x, sizeof(float) * static_cast<size_t>(D));
    } else if (ring.kv == Kv::Q8_0) {
        store_q8(x, D, static_cast<int8_t*>(values) + at * D, scales + at * (D / 32));
    } else {
        uint16_t* out = static_cast<uint16_t*>(values) + at * D;
        i64 i = 0;
        for (; i + 16 <= D; i += 16) store_f16(out + i, load(x + i));
        if (i == D) return;
        alignas(64) uint16_t tail[16];
        store_f16(tail, load_n(x + i, static_cast<int>(D - i)));
        std::memcpy(out + i, tail, sizeof(uint16_t) * static_cast<size_t>(D - i));
    }
}

}  // namespace

namespace BISE_ISA {

void rms_norm(const float* x, const float* w, float eps, i64 n, i64 t0, i64 t1, float* y) {
    for (i64 t = t0; t < t1; t++) {
        const float* row = x + t * n;
        float* out = y + t * n;
        F squares = zero();
        i64 i = 0;
        for (; i + 16 <= n; i += 16) squares = fma(load(row + i), load(row + i), squares);
        const int rest = static_cast<int>(n - i);
        const F tail = load_n(row + i, rest);
        const F factor = set1(1.0f / __builtin_sqrtf(sum(fma(tail, tail, squares)) / static_cast<float>(n) + eps));
        for (i = 0; i + 16 <= n; i += 16) store(out + i, mul(mul(load(row + i), factor), load(w + i)));
        if (rest) store_n(out + i, mul(mul(tail, factor), load_n(w + i, rest)), rest);
    }
}

void rope(float* x, const float* cos, const float* sin, i64 heads, i64 half, i64 t0, i64 t1) {
    for (i64 t = t0; t < t1; t++) {
        const float* __restrict__ c = cos + t * half, * __restrict__ s = sin + t * half;
        for (i64 h = 0; h < heads; h++) {
            float* __restrict__ v = x + (t * heads + h) * 2 * half;
            for (i64 i = 0; i < half; i++) {
                const float a = v[2 * i], b = v[2 * i + 1];
                v[2 * i] = a * c[i] - b * s[i];
                v[2 * i + 1] = a * s[i] + b * c[i];
            }
        }
    }
}

// with r = 1 / sqrt(mean(x^2) + eps):   dx = r (w dy) - x r^3 mean(x w dy)
void rms_norm_back(const float* x, const float* w, float eps, i64 n, i64 t0, i64 t1, const float* dy, float* dx) {
    x += t0 * n, dy += t0 * n, dx += t0 * n;
    for (i64 t = t0; t < t1; t++, x += n, dy += n, dx += n) {
        F squares = zero(), along = zero();
        for (i64 i = 0; i < n; i += 16) {
            const int m = static_cast<int>(n - i < 16 ? n - i : 16);
            const F v = load_n(x + i, m);
            squares = fma(v, v, squares);
            along = fma(v, mul(load_n(w + i, m), load_n(dy + i, m)), along);
        }
        const float size = static_cast<float>(n), r = 1.0f / __builtin_sqrtf(sum(squares) / size + eps);
        const F factor = set1(r), back = set1(-r * r * r * (sum(along) / size));
        for (i64 i = 0; i < n; i += 16) {
            const int m = static_cast<int>(n - i < 16 ? n - i : 16);
            store_n(dx + i, fma(back, load_n(x + i, m), mul(factor, mul(load_n(w + i, m), load_n(dy + i, m)))), m);
        }
    }
}

void swiglu(const float* gate, const float* up, i64 n, float* y) {
    const F one = set1(1.0f);
    const auto silu_times = [&](F g, F u) { return mul(div(g, add(one, exp(sub(zero(), g)))), u); };
    i64 i = 0;
    for (; i + 16 <= n; i += 16) store(y + i, silu_times(load(gate + i), load(up + i)));
    const int rest = static_cast<int>(n - i);
    if (rest) store_n(y + i, silu_times(load_n(gate + i, rest), load_n(up + i, rest)), rest);
}

// with s = 1 / (1 + exp(-gate)):   dup = dy gate s   dgate = dy up s (1 + gate (1 - s))
void swiglu_back(const float* gate, const float* up, const float* dy, i64 n, float* dgate, float* dup) {
    const F one = set1(1.0f);
    for (i64 i = 0; i < n; i += 16) {
        const int m = static_cast<int>(n - i < 16 ? n - i : 16);
        const F g = load_n(gate + i, m), d = load_n(dy + i, m), s = div(one, add(one, exp(sub(zero(), g))));
        const F slope = mul(s, fma(g, sub(one, s), one));
        store_n(dup + i, mul(d, mul(g, s)), m);
        store_n(dgate + i, mul(mul(d, load_n(up + i, m)), slope), m);
    }
}

void store_ring(const RingView& ring, const Span& span, i64 i0, i64 i1, const float* k, const float* v) {
    for (i64 i = i0; i < i1; i++) {
        const i64 slot = (span.position + i) % ring.N;
        for (i64 g = 0; g < ring.G; g++) {
            const i64 from = ((span.row + i) * ring.G + g) * ring.D, at = (span.sequence * ring.G + g) * ring.N + slot;
            store_vector(ring, at, k + from, ring.k, ring.k_scale);
            store_vector(ring, at, v + from, ring.v, ring.v_scale);
        }
    }
}

}  // namespace BISE_ISA
}  // namespace bise
