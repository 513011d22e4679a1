// simd.h in portable C++ (GCC and Clang vector types), for any x86-64 and for what else there is. There is no fused
// multiply-add to rely on: fma(a, b, c) rounds twice here.
#pragma once

namespace bise {
namespace {

constexpr bool kNarrow = false, kBiased = true;
constexpr int kPanels = 1, kTile = 2, kRest = 2;
constexpr int kQueryRows = 2;
constexpr int kHeads = 2, kVecs = 2;

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef int16_t I16 __attribute__((vector_size(64)));

inline F load(const float* p) {
    F x;
    std::memcpy(&x, p, 64);
    return x;
}
inline void store(float* p, F x) { std::memcpy(p, &x, 64); }
inline F set1(float x) { return F{} + x; }
inline F zero() { return F{}; }
inline I load_i(const void* p) {
    I x;
    std::memcpy(&x, p, 64);
    return x;
}
inline void store_i(void* p, I x) { std::memcpy(p, &x, 64); }
inline I set1_i(int32_t x) { return I{} + x; }
inline I zero_i() { return I{}; }
inline I bits(F x) { return load_i(&x); }
inline F floats(I x) {
    F y;
    std::memcpy(&y, &x, 64);
    return y;
}
inline I load_u16(const uint16_t* p) {
    I x;
    for (int i = 0; i < 16; i++) x[i] = p[i];
    return x;
}
inline F load_f16(const uint16_t* p) {
    const I h = load_u16(p), sign = (h & 0x8000) << 16;
    const F x = floats((h & 0x7fff) << 13) * 0x1p112f;  // exact, subnormals too
    const I special = (h & 0x7c00) == set1_i(0x7c00);   // all ones where the value is infinite or NaN
    return floats(bits(x) | sign | (special & 0x7f800000));
}
inline F load_bf16(const uint16_t* p) { return floats(load_u16(p) << 16); }
inline F load_i8(const int8_t* p) {
    F x;
    for (int i = 0; i < 16; i++) x[i] = p[i];
    return x;
}
inline uint16_t to_f16(float value) {  // to nearest, ties to even
    uint32_t x;
    std::memcpy(&x, &value, 4);
    const uint32_t sign = (x >> 16) & 0x8000, size = x & 0x7fffffff;
    if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | ((size >> 13) & 0x3ff));  // NaN
    if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);                          // rounds to infinity
    if (size < 0x38800000) {  // subnormal: let the float adder round to multiples of 2^-24
        float y;
        std::memcpy(&y, &size, 4);
        y += 0.5f;
        std::memcpy(&x, &y, 4);
        return static_cast<uint16_t>(sign | (x - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13));
}
inline void store_f16(uint16_t* p, F x) {
    for (int i = 0; i < 16; i++) p[i] = to_f16(x[i]);
}
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F fnma(F a, F b, F c) { return c - a * b; }
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }
inline float sum(F x) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return x[0];
}
inline float max_of(F x) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] = x[i] > x[i + n] ? x[i] : x[i + n];
    return x[0];
}
inline F where_above(F a, F b, F x, F y) { return a > b ? x : y; }  // lane by lane: x where a > b, else y
inline bool any_above(F x, float y) {
    bool any = false;
    for (int i = 0; i < 16; i++) any |= x[i] > y;
    return any;
}
typedef uint32_t U __attribute__((vector_size(64)));
inline F scale2(F x, I n) { return floats(bits(x) + (I)((U)n << 23)); }
inline F zero_where_less(F a, F b, F x) { return a < b ? F{} : x; }

inline I and_i(I a, I b) { return a & b; }
inline I or_i(I a, I b) { return a | b; }
inline I xor_i(I a, I b) { return a ^ b; }
inline I add_i(I a, I b) { return a + b; }
inline I lookup(I nibbles, const int8_t* table) {  // each byte's entry of 16
    uint8_t x[64];
    std::memcpy(x, &nibbles, 64);
    for (int i = 0; i < 64; i++) x[i] = static_cast<uint8_t>(table[x[i]]);
    return load_i(x);
}
template <int n>
inline I shr(I a) {
    return (I)((U)a >> n);
}
template <int n>
inline I sar(I a) {
    return a >> n;
}
template <int n>
inline I shl(I a) {
    return (I)((U)a << n);
}
inline I high_bytes16(I a) { return (I)((I16)a >> 8); }
inline I low_bytes16(I a) { return (I)((I16)((I16)a << 8) >> 8); }
inline I max_i(I a, I b) { return a > b ? a : b; }
inline int32_t max_of(I x) {
    int32_t m = x[0];
    for (int i = 1; i < 16; i++) m = x[i] > m ? x[i] : m;
    return m;
}
inline F to_float(I x) { return __builtin_convertvector(x, F); }
inline I round(F x) {  // to nearest, ties to even, for |x| < 2^22: the sum with 1.5 * 2^23 has no room for a fraction
    const F magic = set1(12582912.0f);
    return bits(x + magic) - bits(magic);
}
inline void store_bytes(int8_t* p, I x) {
    for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(x[i]);
}

inline int32_t four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return x;
}

inline I dot2(I acc, I w, int32_t pair) {
    return acc + sar<16>(shl<16>(w)) * static_cast<int16_t>(pair) + (w >> 16) * (pair >> 16);
}

// 64 signed bytes -> the sum of the 4 in each lane
inline I sums4(const int8_t* p) {
    const I x = load_i(p);
    return sar<24>(x) + sar<24>(shl<8>(x)) + sar<24>(shl<16>(x)) + sar<24>(shl<24>(x));
}

constexpr int dots_per_part(int) { return 8; }
using Part = I;
using Sum = I;
using Scale = I;
inline Part part(int32_t offset) { return set1_i(offset); }
// a call each: inlined hundreds of times into the unrolled kernels, it takes compilers minutes
[[maybe_unused, gnu::noinline]] Part dot4(Part acc, I w, const int8_t* x) {
    acc += (w & 255) * x[0];
    acc += ((w >> 8) & 255) * x[1];
    acc += ((w >> 16) & 255) * x[2];
    return acc + ((w >> 24) & 255) * x[3];
}
template <int j>
inline Part dot(Part acc, I w, const int8_t* q) {
    return dot4(acc, w, q + 4 * j);
}
inline Scale to_scale(I lanes) { return lanes; }
inline Sum sum_zero() { return zero_i(); }
inline Sum add_scaled(Sum s, Part p, Scale scale) { return s + p * scale; }
inline F sum_float(Sum s) { return to_float(s); }
inline I part_total(Part p) { return p; }

inline void transpose_four(F*) {}    // elsewhere the first step of
inline void transpose_fours(F* r) {  // 16 x 16
    float t[16][16];
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) t[j][i] = r[i][j];
    for (int i = 0; i < 16; i++) r[i] = load(t[i]);
}

}  // namespace
}  // namespace bise
