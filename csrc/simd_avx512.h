// simd.h on AVX-512 with VNNI: one register each.
#pragma once
#include <immintrin.h>

namespace bise {
namespace {

constexpr bool kNarrow = false, kBiased = true;
constexpr int kPanels = 2, kTile = 6, kRest = 4;  // panels x columns of activations per register tile, and the last columns'
constexpr int kQueryRows = 8;                     // query rows per register tile of scores
constexpr int kHeads = 4, kVecs = 4;              // query heads x 16-wide slices of D per register tile of values

struct F {
    __m512 v;
};
struct I {
    __m512i v;
};

inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F zero() { return {_mm512_setzero_ps()}; }
inline F load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline F load_bf16(const uint16_t* p) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
}
inline F load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store_f16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a * b + c
inline F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline float sum(F x) { return _mm512_reduce_add_ps(x.v); }
inline float max_of(F x) { return _mm512_reduce_max_ps(x.v); }
inline F where_above(F a, F b, F x, F y) {  // lane by lane: x where a > b, else y
    return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), x.v)};
}
inline bool any_above(F x, float y) { return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(y), _CMP_GT_OQ) != 0; }
inline F scale2(F x, I n) {
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), _mm512_slli_epi32(n.v, 23)))};
}
inline F zero_where_less(F a, F b, F x) {
    return {_mm512_mask_mov_ps(x.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), _mm512_setzero_ps())};
}

inline I load_i(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_i(void* p, I x) { _mm512_storeu_si512(p, x.v); }
inline I set1_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I zero_i() { return {_mm512_setzero_si512()}; }
inline I and_i(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I or_i(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I xor_i(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline I add_i(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I lookup(I nibbles, const int8_t* table) {  // each byte's entry of 16
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), nibbles.v)};
}
template <int n>
inline I shr(I a) {
    return {_mm512_srli_epi32(a.v, n)};
}  // in 32-bit lanes
template <int n>
inline I sar(I a) {
    return {_mm512_srai_epi32(a.v, n)};
}
template <int n>
inline I shl(I a) {
    return {_mm512_slli_epi32(a.v, n)};
}
inline I high_bytes16(I a) { return {_mm512_srai_epi16(a.v, 8)}; }                       // signed, bytes 1 and 3
inline I low_bytes16(I a) { return {_mm512_srai_epi16(_mm512_slli_epi16(a.v, 8), 8)}; }  // signed, bytes 0 and 2
inline I max_i(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t max_of(I a) { return _mm512_reduce_max_epi32(a.v); }
inline I bits(F x) { return {_mm512_castps_si512(x.v)}; }
inline F to_float(I x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline I round(F x) { return {_mm512_cvtps_epi32(x.v)}; }  // to nearest, ties to even
inline void store_bytes(int8_t* p, I x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v)); }

inline int32_t four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return x;
}

// lane += pair of int16 of w times the pair of int16 in x
inline I dot2(I acc, I w, int32_t x) { return {_mm512_dpwssd_epi32(acc.v, w.v, _mm512_set1_epi32(x))}; }

// 64 signed bytes -> the sum of the 4 in each lane
inline I sums4(const int8_t* p) {
    return {_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_loadu_si512(p))};
}

constexpr int dots_per_part(int) { return 8; }
using Part = I;
using Sum = F;
using Scale = F;
inline Part part(int32_t offset) { return set1_i(offset); }
template <int j>
inline Part dot(Part acc, I w, const int8_t* q) {
    return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(four(q + 4 * j)))};
}
inline Scale to_scale(I lanes) { return to_float(lanes); }
inline Sum sum_zero() { return zero(); }
inline Sum add_scaled(Sum s, Part p, Scale scale) { return fma(to_float(p), scale, s); }
inline F sum_float(Sum s) { return s; }
inline I part_total(Part p) { return p; }

// 16 x 16 in two steps: every four rows r[0..3] in turn (4 x 4 blocks within 128-bit lanes), then all sixteen
inline void transpose_four(F* r) {
    const __m512 a = _mm512_unpacklo_ps(r[0].v, r[1].v), b = _mm512_unpackhi_ps(r[0].v, r[1].v);
    const __m512 c = _mm512_unpacklo_ps(r[2].v, r[3].v), d = _mm512_unpackhi_ps(r[2].v, r[3].v);
    r[0].v = _mm512_shuffle_ps(a, c, 0x44), r[1].v = _mm512_shuffle_ps(a, c, 0xee);
    r[2].v = _mm512_shuffle_ps(b, d, 0x44), r[3].v = _mm512_shuffle_ps(b, d, 0xee);
}
inline void transpose_fours(F* r) {
    for (int j = 0; j < 4; j++) {  // lane l of r[j], r[4 + j], r[8 + j], r[12 + j] becomes row 4 l + j
        const __m512 a = _mm512_shuffle_f32x4(r[j].v, r[4 + j].v, 0x88), c = _mm512_shuffle_f32x4(r[j].v, r[4 + j].v, 0xdd);
        const __m512 b = _mm512_shuffle_f32x4(r[8 + j].v, r[12 + j].v, 0x88),
                     d = _mm512_shuffle_f32x4(r[8 + j].v, r[12 + j].v, 0xdd);
        r[j].v = _mm512_shuffle_f32x4(a, b, 0x88), r[8 + j].v = _mm512_shuffle_f32x4(a, b, 0xdd);
        r[4 + j].v = _mm512_shuffle_f32x4(c, d, 0x88), r[12 + j].v = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
}

}  // namespace
}  // namespace bise
