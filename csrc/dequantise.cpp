// Rows of a file's blocks to float32, the same float operations as the specification in quant.py; layouts in pack.cpp.
// The quants of a block become bytes first, so that the loops over them are plain enough for the compiler's vectors.
#include "half.h"
#include "isa.h"
#include "pack.h"
#include "simd.h"

namespace bise {
namespace {

alignas(16) constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

BISE_INLINE float half(const uint8_t* p) { return from_f16(read<uint16_t>(p)); }

// n bytes -> their low halves, then their high ones
template <int n>
BISE_INLINE void nibbles(const uint8_t* __restrict__ p, int8_t* __restrict__ q) {
    for (int i = 0; i < n; i++) q[i] = static_cast<int8_t>(p[i] & 15);
    for (int i = 0; i < n; i++) q[n + i] = static_cast<int8_t>(p[i] >> 4);
}
// 32 bytes -> bits 0-1 of all, then bits 2-3, 4-5, 6-7
BISE_INLINE void pairs(const uint8_t* __restrict__ p, int8_t* __restrict__ q) {
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 32; i++) q[32 * j + i] = static_cast<int8_t>((p[i] >> (2 * j)) & 3);
}
// bit i of 32 is worth 16 in q[i]
BISE_INLINE void fifth(const uint8_t* p, int8_t* __restrict__ q) {
    const uint32_t high = read<uint32_t>(p);
    for (int i = 0; i < 32; i++) q[i] = static_cast<int8_t>(q[i] | ((high >> i & 1) << 4));
}
BISE_INLINE void through_iq4(int8_t* q) {  // 64 of them
    I x;
    std::memcpy(&x, q, 64);
    x = lookup(x, kIq4);
    std::memcpy(q, &x, 64);
}

template <int n>
BISE_INLINE void scaled(float d, const int8_t* __restrict__ q, int offset, float* __restrict__ y) {
    for (int i = 0; i < n; i++) y[i] = d * static_cast<float>(q[i] - offset);
}
template <int n>
BISE_INLINE void raised(float d, const int8_t* __restrict__ q, float m, float* __restrict__ y) {
    for (int i = 0; i < n; i++) y[i] = d * static_cast<float>(q[i]) + m;
}

// the 6-bit scale and minimum of group s (0..7) out of 12 bytes
BISE_INLINE void scale6(const uint8_t* p, int s, int& scale, int& minimum) {
    if (s < 4) {
        scale = p[s] & 63, minimum = p[s + 4] & 63;
    } else {
        scale = (p[s + 4] & 15) | (p[s - 4] >> 6 << 4), minimum = (p[s + 4] >> 4) | (p[s] >> 6 << 4);
    }
}

BISE_INLINE void q2_k(const uint8_t* p, float* y) {
    int8_t q[256];
    for (int h = 0; h < 2; h++) pairs(p + 16 + 32 * h, q + 128 * h);
    const float d = half(p + 80), dmin = half(p + 82);
    for (int s = 0; s < 16; s++)
        raised<16>(d * static_cast<float>(p[s] & 15), q + 16 * s, -(dmin * static_cast<float>(p[s] >> 4)), y + 16 * s);
}

BISE_INLINE void q3_k(const uint8_t* p, float* y) {
    int8_t q[256];
    for (int h = 0; h < 2; h++) pairs(p + 32 + 32 * h, q + 128 * h);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) q[32 * j + i] = static_cast<int8_t>(q[32 * j + i] | ((p[i] >> j & 1) << 2));
    const float d = half(p + 108);
    for (int s = 0; s < 16; s++) {
        const int scale = ((p[96 + s % 8] >> (s / 8 * 4)) & 15) | ((p[104 + s % 4] >> (s / 4 * 2)) & 3) << 4;
        scaled<16>(d * static_cast<float>(scale - 32), q + 16 * s, 4, y + 16 * s);
    }
}

BISE_INLINE void q45_k(const uint8_t* p, const uint8_t* high, const uint8_t* low, float* y) {
    int8_t q[256];
    for (int j = 0; j < 4; j++) nibbles<32>(low + 32 * j, q + 64 * j);
    for (int j = 0; high && j < 8; j++)
        for (int i = 0; i < 32; i++) q[32 * j + i] = static_cast<int8_t>(q[32 * j + i] | ((high[i] >> j & 1) << 4));
    const float d = half(p), dmin = half(p + 2);
    for (int s = 0; s < 8; s++) {
        int scale, minimum;
        scale6(p + 4, s, scale, minimum);
        raised<32>(d * static_cast<float>(scale), q + 32 * s, -(dmin * static_cast<float>(minimum)), y + 32 * s);
    }
}

BISE_INLINE void q6_k(const uint8_t* p, float* y) {
    int8_t q[256], high[256];
    for (int h = 0; h < 2; h++) nibbles<64>(p + 64 * h, q + 128 * h), pairs(p + 128 + 32 * h, high + 128 * h);
    for (int i = 0; i < 256; i++) q[i] = static_cast<int8_t>(q[i] | high[i] << 4);
    const float d = half(p + 208);
    for (int s = 0; s < 16; s++) scaled<16>(d * static_cast<float>(static_cast<int8_t>(p[192 + s])), q + 16 * s, 32, y + 16 * s);
}

BISE_INLINE void iq4_xs(const uint8_t* p, float* y) {
    int8_t q[256];
    for (int j = 0; j < 8; j++) nibbles<16>(p + 8 + 16 * j, q + 32 * j);
    for (int j = 0; j < 4; j++) through_iq4(q + 64 * j);
    const float d = half(p);
    for (int s = 0; s < 8; s++) {
        const int low = p[4 + s / 2] >> (s % 2 * 4) & 15, high = read<uint16_t>(p + 2) >> (2 * s) & 3;
        scaled<32>(d * static_cast<float>((low | high << 4) - 32), q + 32 * s, 0, y + 32 * s);
    }
}

// the types by 32 columns
BISE_INLINE void by_32(Type type, const uint8_t* p, float* y) {
    int8_t q[64] = {};
    const float d = half(p);
    switch (type) {
        case Type::Q8_0:
            std::memcpy(q, p + 2, 32);
            return scaled<32>(d, q, 0, y);
        case Type::Q4_0:
            nibbles<16>(p + 2, q);
            return scaled<32>(d, q, 8, y);
        case Type::Q5_0:
            nibbles<16>(p + 6, q), fifth(p + 2, q);
            return scaled<32>(d, q, 16, y);
        case Type::IQ4_NL:
            nibbles<16>(p + 2, q), through_iq4(q);
            return scaled<32>(d, q, 0, y);
        case Type::Q4_1:
            nibbles<16>(p + 4, q);
            return raised<32>(d, q, half(p + 2), y);
        default:  // Q5_1
            nibbles<16>(p + 8, q), fifth(p + 4, q);
            return raised<32>(d, q, half(p + 2), y);
    }
}

BISE_INLINE void by_256_columns(Type type, const uint8_t* p, float* y) {
    switch (type) {
        case Type::Q2_K:
            return q2_k(p, y);
        case Type::Q3_K:
            return q3_k(p, y);
        case Type::Q4_K:
            return q45_k(p, nullptr, p + 16, y);
        case Type::Q5_K:
            return q45_k(p, p + 16, p + 48, y);
        case Type::Q6_K:
            return q6_k(p, y);
        default:
            return iq4_xs(p, y);
    }
}

BISE_INLINE void floats(Type type, const uint8_t* p, i64 n, float* y) {
    if (type == Type::F32) {
        std::memcpy(y, p, sizeof(float) * static_cast<size_t>(n));
    } else if (type == Type::F16) {
        i64 i = 0;
        for (; i + 16 <= n; i += 16) store(y + i, load_f16(reinterpret_cast<const uint16_t*>(p + 2 * i)));
        for (; i < n; i++) y[i] = half(p + 2 * i);
    } else {
        for (i64 i = 0; i < n; i++) y[i] = from_bf16(read<uint16_t>(p + 2 * i));
    }
}

}  // namespace

namespace BISE_ISA {

void dequantise(Type type, const uint8_t* p, i64 n, float* y) {
    if (is_float(type)) return floats(type, p, n, y);
    const i64 step = block_columns(type), bytes = row_bytes(type, step);
    for (i64 i = 0; i < n; i += step, p += bytes) step == 32 ? by_32(type, p, y + i) : by_256_columns(type, p, y + i);
}

void look_up(const float* levels, const uint8_t* p, const float* scales, i64 blocks, float* __restrict__ y) {
    float table[16];
    std::memcpy(table, levels, sizeof table);
    for (i64 b = 0; b < blocks; b++, p += 32, y += 64) {
        for (int i = 0; i < 32; i++) y[i] = scales[b] * table[p[i] & 15];
        for (int i = 0; i < 32; i++) y[32 + i] = scales[b] * table[p[i] >> 4];
    }
}

}  // namespace BISE_ISA
}  // namespace bise
