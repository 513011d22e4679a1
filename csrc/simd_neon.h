// simd.h on arm64: four registers of 128 bits each, which every arm64 has; dot products of bytes (sdot, FEAT_DotProd) where the
// compiler may use them. They are exact and everything else is the same: the two agree to the bit.
// Of two operands with a NaN, max and min return the NaN.
#pragma once
#include <arm_neon.h>

namespace bise {
namespace {

constexpr bool kNarrow = false, kBiased = false;
constexpr int kPanels = 1, kTile = 4, kRest = 2;
constexpr int kQueryRows = 2;
constexpr int kHeads = 2, kVecs = 2;

struct F {
    float32x4_t a, b, c, d;
};
struct I {
    int32x4_t a, b, c, d;
};

#define BISE_EACH(type, f, ...) \
    type { f(x.a, ##__VA_ARGS__), f(x.b, ##__VA_ARGS__), f(x.c, ##__VA_ARGS__), f(x.d, ##__VA_ARGS__) }
#define BISE_BOTH(type, f) \
    type { f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d) }
#define BISE_ONTO(type, f) \
    type { f(z.a, x.a, y.a), f(z.b, x.b, y.b), f(z.c, x.c, y.c), f(z.d, x.d, y.d) }

BISE_INLINE F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
BISE_INLINE void store(float* p, F x) { vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d); }
BISE_INLINE F set1(float value) {
    const float32x4_t x = vdupq_n_f32(value);
    return {x, x, x, x};
}
BISE_INLINE F zero() { return set1(0); }
BISE_INLINE F load_f16(const uint16_t* p) {
    const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(p)), y = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return {vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
}
BISE_INLINE F load_bf16(const uint16_t* p) {  // a zero below each: little-endian float32
    const uint16x8_t zeros = vdupq_n_u16(0), x = vld1q_u16(p), y = vld1q_u16(p + 8);
    return {vreinterpretq_f32_u16(vzip1q_u16(zeros, x)), vreinterpretq_f32_u16(vzip2q_u16(zeros, x)),
            vreinterpretq_f32_u16(vzip1q_u16(zeros, y)), vreinterpretq_f32_u16(vzip2q_u16(zeros, y))};
}
BISE_INLINE F load_i8(const int8_t* p) {
    const int8x16_t x = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))};
}
BISE_INLINE void store_f16(uint16_t* p, F x) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
    vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d)));
}
BISE_INLINE F add(F x, F y) { return BISE_BOTH(F, vaddq_f32); }
BISE_INLINE F sub(F x, F y) { return BISE_BOTH(F, vsubq_f32); }
BISE_INLINE F mul(F x, F y) { return BISE_BOTH(F, vmulq_f32); }
BISE_INLINE F div(F x, F y) { return BISE_BOTH(F, vdivq_f32); }
BISE_INLINE F max(F x, F y) { return BISE_BOTH(F, vmaxq_f32); }
BISE_INLINE F min(F x, F y) { return BISE_BOTH(F, vminq_f32); }
BISE_INLINE F fma(F x, F y, F z) { return BISE_ONTO(F, vfmaq_f32); }   // x * y + z
BISE_INLINE F fnma(F x, F y, F z) { return BISE_ONTO(F, vfmsq_f32); }  // z - x * y
BISE_INLINE float sum(F x) {                                           // i with i + 8, then i + 4, i + 2, i + 1
    const float32x4_t s = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
BISE_INLINE float max_of(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }
BISE_INLINE float32x4_t where_above(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_f32(a, b), x, y);
}
BISE_INLINE F where_above(F a, F b, F x, F y) {  // lane by lane: x where a > b, else y
    return {where_above(a.a, b.a, x.a, y.a), where_above(a.b, b.b, x.b, y.b), where_above(a.c, b.c, x.c, y.c),
            where_above(a.d, b.d, x.d, y.d)};
}
BISE_INLINE bool any_above(F x, float y) {
    const auto above = [&](float32x4_t v) BISE_LAMBDA { return vcgtq_f32(v, vdupq_n_f32(y)); };
    return vmaxvq_u32(vorrq_u32(vorrq_u32(above(x.a), above(x.b)), vorrq_u32(above(x.c), above(x.d)))) != 0;
}

BISE_INLINE I load_i(const void* from) {
    const auto* p = static_cast<const uint8_t*>(from);
    return {vreinterpretq_s32_u8(vld1q_u8(p)), vreinterpretq_s32_u8(vld1q_u8(p + 16)), vreinterpretq_s32_u8(vld1q_u8(p + 32)),
            vreinterpretq_s32_u8(vld1q_u8(p + 48))};
}
BISE_INLINE void store_i(void* to, I x) {
    auto* p = static_cast<uint8_t*>(to);
    vst1q_u8(p, vreinterpretq_u8_s32(x.a)), vst1q_u8(p + 16, vreinterpretq_u8_s32(x.b));
    vst1q_u8(p + 32, vreinterpretq_u8_s32(x.c)), vst1q_u8(p + 48, vreinterpretq_u8_s32(x.d));
}
BISE_INLINE I set1_i(int32_t value) {
    const int32x4_t x = vdupq_n_s32(value);
    return {x, x, x, x};
}
BISE_INLINE I zero_i() { return set1_i(0); }
BISE_INLINE I and_i(I x, I y) { return BISE_BOTH(I, vandq_s32); }
BISE_INLINE I or_i(I x, I y) { return BISE_BOTH(I, vorrq_s32); }
BISE_INLINE I xor_i(I x, I y) { return BISE_BOTH(I, veorq_s32); }
BISE_INLINE I add_i(I x, I y) { return BISE_BOTH(I, vaddq_s32); }
BISE_INLINE int32x4_t shr(int32x4_t x, int n) { return (int32x4_t)((uint32x4_t)x >> n); }
template <int n>
BISE_INLINE I shr(I x) {
    return BISE_EACH(I, shr, n);
}
template <int n>
BISE_INLINE I sar(I x) {
    return BISE_EACH(I, vshrq_n_s32, n);
}
template <int n>
BISE_INLINE I shl(I x) {
    return BISE_EACH(I, vshlq_n_s32, n);
}
BISE_INLINE int32x4_t high_bytes16(int32x4_t x) { return vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_s32(x), 8)); }
BISE_INLINE int32x4_t low_bytes16(int32x4_t x) {
    return vreinterpretq_s32_s16(vshrq_n_s16(vshlq_n_s16(vreinterpretq_s16_s32(x), 8), 8));
}
BISE_INLINE I high_bytes16(I x) { return BISE_EACH(I, high_bytes16); }
BISE_INLINE I low_bytes16(I x) { return BISE_EACH(I, low_bytes16); }
BISE_INLINE I max_i(I x, I y) { return BISE_BOTH(I, vmaxq_s32); }
BISE_INLINE int32_t max_of(I x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
BISE_INLINE I bits(F x) { return BISE_EACH(I, vreinterpretq_s32_f32); }
BISE_INLINE F to_float(I x) { return BISE_EACH(F, vcvtq_f32_s32); }
BISE_INLINE I round(F x) { return BISE_EACH(I, vcvtnq_s32_f32); }  // to nearest, ties to even
BISE_INLINE void store_bytes(int8_t* p, I x) {                     // the low byte of every lane
    const auto pairs = [](int32x4_t low, int32x4_t high) BISE_LAMBDA {
        return vreinterpretq_s8_s16(vuzp1q_s16(vreinterpretq_s16_s32(low), vreinterpretq_s16_s32(high)));
    };
    vst1q_s8(p, vuzp1q_s8(pairs(x.a, x.b), pairs(x.c, x.d)));
}
BISE_INLINE float32x4_t scale2(float32x4_t x, int32x4_t n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(n, 23)));
}
BISE_INLINE F scale2(F x, I y) { return BISE_BOTH(F, scale2); }
BISE_INLINE float32x4_t zero_where_less(float32x4_t z, float32x4_t x, float32x4_t y) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(z), vcltq_f32(x, y)));
}
BISE_INLINE F zero_where_less(F x, F y, F z) { return BISE_ONTO(F, zero_where_less); }

BISE_INLINE int32x4_t lookup(int32x4_t x, int8x16_t table) {
    return vreinterpretq_s32_s8(vqtbl1q_s8(table, vreinterpretq_u8_s32(x)));
}
BISE_INLINE I lookup(I x, const int8_t* table) {  // each byte's entry of 16
    const int8x16_t t = vld1q_s8(table);
    return BISE_EACH(I, lookup, t);
}

// lane += pair of int16 of w times the pair of int16 in x
BISE_INLINE I dot2(I acc, I w, int32_t x) {
    const int16x4_t pair = vreinterpret_s16_s32(vdup_n_s32(x));
    const auto half = [&](int32x4_t& low, int32x4_t& high, int32x4_t from, int32x4_t to) BISE_LAMBDA {
        const int16x8_t p = vreinterpretq_s16_s32(from), q = vreinterpretq_s16_s32(to);
        const int16x8_t even = vuzp1q_s16(p, q), odd = vuzp2q_s16(p, q);
        low = vmlal_lane_s16(vmlal_lane_s16(low, vget_low_s16(even), pair, 0), vget_low_s16(odd), pair, 1);
        high = vmlal_high_lane_s16(vmlal_high_lane_s16(high, even, pair, 0), odd, pair, 1);
    };
    half(acc.a, acc.b, w.a, w.b), half(acc.c, acc.d, w.c, w.d);
    return acc;
}

constexpr int dots_per_part(int) { return 8; }
using Part = I;
using Sum = I;  // one multiply-add in integers is quicker here than a conversion and one in floats
using Scale = I;
BISE_INLINE Part part(int32_t offset) { return set1_i(offset); }
#ifdef __ARM_FEATURE_DOTPROD
BISE_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t x) { return vdotq_s32(acc, w, x); }
template <int lane>
BISE_INLINE int32x4_t dot(int32x4_t acc, int32x4_t w, int8x16_t x) {
    return vdotq_laneq_s32(acc, vreinterpretq_s8_s32(w), x, lane);
}
#else  // |x| <= 127, so an int16 holds two products: 2 * 127 * 128 <= 32767
BISE_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t x) {
    return vpadalq_s16(acc, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)));
}
template <int lane>
BISE_INLINE int32x4_t dot(int32x4_t acc, int32x4_t w, int8x16_t x) {
    const int32x4_t four = vdupq_laneq_s32(vreinterpretq_s32_s8(x), lane);
    return dot(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(four));
}
#endif
// Sixteen activations in one register serve four quants: to load four into every lane takes an operation more.
template <int j>
BISE_INLINE Part dot(Part acc, I w, const int8_t* q) {
    const int8x16_t x = vld1q_s8(q + j / 4 * 16);
    constexpr int lane = j % 4;
    return {dot<lane>(acc.a, w.a, x), dot<lane>(acc.b, w.b, x), dot<lane>(acc.c, w.c, x), dot<lane>(acc.d, w.d, x)};
}
BISE_INLINE Scale to_scale(I lanes) { return lanes; }
BISE_INLINE Sum sum_zero() { return zero_i(); }
BISE_INLINE Sum add_scaled(Sum z, Part x, Scale y) { return BISE_ONTO(Sum, vmlaq_s32); }
BISE_INLINE F sum_float(Sum s) { return to_float(s); }
BISE_INLINE I part_total(Part p) { return p; }

// 64 signed bytes -> the sum of the 4 in each lane
BISE_INLINE int32x4_t sums4(int32x4_t x) { return dot(vdupq_n_s32(0), vreinterpretq_s8_s32(x), vdupq_n_s8(1)); }
BISE_INLINE I sums4(const int8_t* p) {
    const I x = load_i(p);
    return BISE_EACH(I, sums4);
}

// 16 x 16 in two steps: every four rows r[0..3] in turn (4 x 4 blocks within registers), then all sixteen
BISE_INLINE void transpose_four(float32x4_t& r0, float32x4_t& r1, float32x4_t& r2, float32x4_t& r3) {
    const auto pairs = [](float32x4_t x) BISE_LAMBDA { return vreinterpretq_f64_f32(x); };
    const float64x2_t a = pairs(vtrn1q_f32(r0, r1)), b = pairs(vtrn2q_f32(r0, r1));
    const float64x2_t c = pairs(vtrn1q_f32(r2, r3)), d = pairs(vtrn2q_f32(r2, r3));
    r0 = vreinterpretq_f32_f64(vzip1q_f64(a, c)), r1 = vreinterpretq_f32_f64(vzip1q_f64(b, d));
    r2 = vreinterpretq_f32_f64(vzip2q_f64(a, c)), r3 = vreinterpretq_f32_f64(vzip2q_f64(b, d));
}
BISE_INLINE void transpose_four(F* r) {
    transpose_four(r[0].a, r[1].a, r[2].a, r[3].a), transpose_four(r[0].b, r[1].b, r[2].b, r[3].b);
    transpose_four(r[0].c, r[1].c, r[2].c, r[3].c), transpose_four(r[0].d, r[1].d, r[2].d, r[3].d);
}
BISE_INLINE void transpose_fours(F* r) {
    for (int j = 0; j < 4; j++) {  // register l of r[j], r[4 + j], r[8 + j], r[12 + j] becomes row 4 l + j
        const F p = r[j], q = r[4 + j], s = r[8 + j], t = r[12 + j];
        r[j] = {p.a, q.a, s.a, t.a}, r[4 + j] = {p.b, q.b, s.b, t.b};
        r[8 + j] = {p.c, q.c, s.c, t.c}, r[12 + j] = {p.d, q.d, s.d, t.d};
    }
}

#undef BISE_EACH
#undef BISE_BOTH
#undef BISE_ONTO

}  // namespace
}  // namespace bise
