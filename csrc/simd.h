// The shim that lets one kernel source serve every instruction set. F is 16 floats, I is 16 int32 (or 64 bytes, or 32 int16),
// whatever registers that takes. All of it lives in an anonymous namespace, so that no function compiled for one
// instruction set can be linked into another (the one-definition trap).
//
// Integer dot products: lane r of `dot<j>` adds the products of the 4 bytes of lane r with bytes 4j..4j+3 of the activations.
//   Part   sums of a few dots          Sum    parts times their integer scales     Scale  one scale per lane
//   kDots  how many dots of weights up to `top` a Part can hold
// Where products add up in int16 (kNarrow, AVX2), a Part holds few dots and has no room for an offset. Where the weights of a
// dot have to be unsigned (kBiased), signed ones are 128 higher and the sum starts at -128 times the activations'.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels.h"

#define BISE_LAMBDA __attribute__((always_inline))

#if defined(__AVX512VNNI__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__aarch64__)
#include "simd_neon.h"
#else
#include "simd_base.h"
#endif

namespace bise {
namespace {

template <int i>
using Constant = std::integral_constant<int, i>;

// f(Constant<0>) ... f(Constant<n-1>), unrolled.
template <class Fn, int... i>
BISE_INLINE void unroll_(Fn&& f, std::integer_sequence<int, i...>) {
    (f(Constant<i>{}), ...);
}
template <int n, class Fn>
BISE_INLINE void unroll(Fn&& f) {
    unroll_(f, std::make_integer_sequence<int, n>{});
}

BISE_INLINE F load_n(const float* p, int n) {  // the first n of 16, then zeros
    if (n >= 16) return load(p);
    alignas(64) float lanes[16] = {};
    std::memcpy(lanes, p, sizeof(float) * static_cast<size_t>(n));
    return load(lanes);
}

BISE_INLINE void store_n(float* p, F x, int n) {
    if (n >= 16) return store(p, x);
    alignas(64) float lanes[16];
    store(lanes, x);
    std::memcpy(p, lanes, sizeof(float) * static_cast<size_t>(n));
}

template <Type type>
BISE_INLINE F row16(const uint8_t* panel, i64 k) {  // column k of a panel of floats
    if constexpr (type == Type::F32)
        return load(reinterpret_cast<const float*>(panel) + 16 * k);
    else if constexpr (type == Type::F16)
        return load_f16(reinterpret_cast<const uint16_t*>(panel) + 16 * k);
    else
        return load_bf16(reinterpret_cast<const uint16_t*>(panel) + 16 * k);
}

// e^x to within 2 units in the last place; exactly 1 at 0, exactly 0 below -87.3; NaN stays NaN.
BISE_INLINE F exp(F x) {
    const F floor = set1(-87.33654f);
    const F z = max(floor, min(set1(88.37626f), x));  // of two operands with a NaN, max and min return the second
    const I n = round(mul(z, set1(1.44269504f)));
    F r = fma(to_float(n), set1(-0.693359375f), z);
    r = fma(to_float(n), set1(2.12194440e-4f), r);
    F p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return zero_where_less(x, floor, scale2(p, n));
}

}  // namespace
}  // namespace bise
