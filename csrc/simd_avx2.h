// simd.h on AVX2 + FMA + F16C: two registers each. Products of bytes add up in int16 (vpmaddubsw).
#pragma once
#include <immintrin.h>

namespace bise {
namespace {

constexpr bool kNarrow = true, kBiased = false;
constexpr int kPanels = 1, kTile = 4, kRest = 2;
constexpr int kQueryRows = 2;
constexpr int kHeads = 2, kVecs = 2;

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};

#define BISE_EACH(type, f, ...) \
    type { f(x.a, ##__VA_ARGS__), f(x.b, ##__VA_ARGS__) }
#define BISE_BOTH(type, f) \
    type { f(x.a, y.a), f(x.b, y.b) }
inline __m256i load8(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load4(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load4(p)), _mm256_cvtph_ps(load4(p + 8))}; }
inline __m256 bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline F load_bf16(const uint16_t* p) { return {bf16(load4(p)), bf16(load4(p + 8))}; }
inline F load_i8(const int8_t* p) {
    const __m128i x = load4(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
inline void store_f16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline F add(F x, F y) { return BISE_BOTH(F, _mm256_add_ps); }
inline F sub(F x, F y) { return BISE_BOTH(F, _mm256_sub_ps); }
inline F mul(F x, F y) { return BISE_BOTH(F, _mm256_mul_ps); }
inline F div(F x, F y) { return BISE_BOTH(F, _mm256_div_ps); }
inline F max(F x, F y) { return BISE_BOTH(F, _mm256_max_ps); }
inline F min(F x, F y) { return BISE_BOTH(F, _mm256_min_ps); }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
inline float sum(F x) {
    const __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
inline float max_of(F x) {
    const __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
inline __m256 where_above(__m256 a, __m256 b, __m256 x, __m256 y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
inline F where_above(F a, F b, F x, F y) {  // lane by lane: x where a > b, else y
    return {where_above(a.a, b.a, x.a, y.a), where_above(a.b, b.b, x.b, y.b)};
}
inline bool any_above(F x, float y) {
    const __m256 v = _mm256_set1_ps(y), a = _mm256_cmp_ps(x.a, v, _CMP_GT_OQ), b = _mm256_cmp_ps(x.b, v, _CMP_GT_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(a, b)) != 0;
}
inline __m256 scale2(__m256 x, __m256i n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
}
inline F scale2(F x, I n) { return {scale2(x.a, n.a), scale2(x.b, n.b)}; }
inline F zero_where_less(F x, F y, F z) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), z.a),
            _mm256_andnot_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ), z.b)};
}

inline I load_i(const void* p) { return {load8(p), load8(static_cast<const char*>(p) + 32)}; }
inline void store_i(void* p, I x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x.a), _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
inline I set1_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I zero_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I and_i(I x, I y) { return BISE_BOTH(I, _mm256_and_si256); }
inline I or_i(I x, I y) { return BISE_BOTH(I, _mm256_or_si256); }
inline I xor_i(I x, I y) { return BISE_BOTH(I, _mm256_xor_si256); }
inline I add_i(I x, I y) { return BISE_BOTH(I, _mm256_add_epi32); }
template <int n>
inline I shr(I x) {
    return BISE_EACH(I, _mm256_srli_epi32, n);
}
template <int n>
inline I sar(I x) {
    return BISE_EACH(I, _mm256_srai_epi32, n);
}
template <int n>
inline I shl(I x) {
    return BISE_EACH(I, _mm256_slli_epi32, n);
}
inline I high_bytes16(I x) { return BISE_EACH(I, _mm256_srai_epi16, 8); }
inline I low_bytes16(I x) {
    x = BISE_EACH(I, _mm256_slli_epi16, 8);
    return high_bytes16(x);
}
inline I lookup(I nibbles, const int8_t* table) {  // each byte's entry of 16
    const __m256i t = _mm256_broadcastsi128_si256(load4(table));
    return {_mm256_shuffle_epi8(t, nibbles.a), _mm256_shuffle_epi8(t, nibbles.b)};
}
inline I max_i(I x, I y) { return BISE_BOTH(I, _mm256_max_epi32); }
inline int32_t max_of(I x) {
    const __m256i s = _mm256_max_epi32(x.a, x.b);
    __m128i t = _mm_max_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}
inline I bits(F x) { return BISE_EACH(I, _mm256_castps_si256); }
inline F to_float(I x) { return BISE_EACH(F, _mm256_cvtepi32_ps); }
inline I round(F x) { return BISE_EACH(I, _mm256_cvtps_epi32); }
inline void store_bytes(int8_t* p, I x) {
    const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);  // 16 int16 in order
    const __m128i b = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), b);
}

inline int32_t four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return x;
}

inline I dot2(I acc, I w, int32_t pair) {
    const __m256i y = _mm256_set1_epi32(pair);
    return add_i(acc, {_mm256_madd_epi16(w.a, y), _mm256_madd_epi16(w.b, y)});
}

inline I pair_sums(I x, I y) { return BISE_BOTH(I, _mm256_madd_epi16); }

// 64 signed bytes -> the sum of the 4 in each lane
inline I sums4(const int8_t* p) {
    const __m256i ones = _mm256_set1_epi8(1);
    const I x = {_mm256_maddubs_epi16(ones, load8(p)), _mm256_maddubs_epi16(ones, load8(p + 32))};
    return pair_sums(x, set1_i(0x00010001));
}

// |activation| <= 127, so an int16 holds `dots` products of weights up to `top`: 2 * 127 * top * dots <= 32767
constexpr int dots_per_part(int top) { return top <= 15 ? 8 : top <= 31 ? 4 : 2; }
using Part = I;  // 2 x 16 int16
using Sum = I;
using Scale = I;                                // the scale in both int16 of each lane
inline Part part(int32_t) { return zero_i(); }  // no room for an offset
// GCC would put off the additions of a whole tile to its end, and spill: this keeps a sum where it is written.
inline I settled(I x) {
    asm("" : "+x"(x.a), "+x"(x.b));
    return x;
}
template <int j>
inline Part dot(Part acc, I w, const int8_t* q) {
    const __m256i x = _mm256_set1_epi32(four(q + 4 * j));
    return settled(
        {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, x)), _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, x))});
}
inline Scale to_scale(I lanes) { return or_i(and_i(lanes, set1_i(0xffff)), shl<16>(lanes)); }
inline Sum sum_zero() { return zero_i(); }
inline Sum add_scaled(Sum s, Part p, Scale scale) { return settled(add_i(s, pair_sums(p, scale))); }
inline F sum_float(Sum s) { return to_float(s); }
inline I part_total(Part p) { return pair_sums(p, set1_i(0x00010001)); }

// signed weights: |w| times the activations with w's sign; one pair of products fits an int16, so it is scaled at once
template <int j>
inline I dot_signed(I acc, I w, const int8_t* q, Scale scale) {
    const __m256i x = _mm256_set1_epi32(four(q + 4 * j));
    const I product = {_mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(x, w.a)),
                       _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(x, w.b))};
    return settled(add_i(acc, pair_sums(product, scale)));
}

// 16 x 16 in two steps: every four rows r[0..3] in turn (4 x 4 blocks within 128-bit lanes), then all sixteen
inline void transpose_four(__m256& r0, __m256& r1, __m256& r2, __m256& r3) {
    const __m256 a = _mm256_unpacklo_ps(r0, r1), b = _mm256_unpackhi_ps(r0, r1);
    const __m256 c = _mm256_unpacklo_ps(r2, r3), d = _mm256_unpackhi_ps(r2, r3);
    r0 = _mm256_shuffle_ps(a, c, 0x44), r1 = _mm256_shuffle_ps(a, c, 0xee);
    r2 = _mm256_shuffle_ps(b, d, 0x44), r3 = _mm256_shuffle_ps(b, d, 0xee);
}
inline void transpose_four(F* r) {
    transpose_four(r[0].a, r[1].a, r[2].a, r[3].a), transpose_four(r[0].b, r[1].b, r[2].b, r[3].b);
}
inline void transpose_fours(F* r) {
    for (int j = 0; j < 4; j++) {  // lane l of r[j], r[4 + j], r[8 + j], r[12 + j] becomes row 4 l + j
        const F p = r[j], q = r[4 + j], s = r[8 + j], t = r[12 + j];
        r[j] = {_mm256_permute2f128_ps(p.a, q.a, 0x20), _mm256_permute2f128_ps(s.a, t.a, 0x20)};
        r[4 + j] = {_mm256_permute2f128_ps(p.a, q.a, 0x31), _mm256_permute2f128_ps(s.a, t.a, 0x31)};
        r[8 + j] = {_mm256_permute2f128_ps(p.b, q.b, 0x20), _mm256_permute2f128_ps(s.b, t.b, 0x20)};
        r[12 + j] = {_mm256_permute2f128_ps(p.b, q.b, 0x31), _mm256_permute2f128_ps(s.b, t.b, 0x31)};
    }
}

#undef BISE_EACH
#undef BISE_BOTH

}  // namespace
}  // namespace bise
