// What the search chose to the bytes of a file: for any machine, compiled once. Layouts in pack.cpp.
#include <cstring>

#include "round.h"

namespace bise {
namespace {

// 32 levels from 0 to 15: the first half in the low nibbles; or, with `apart` = 32, 64 of them
void nibbles(const uint8_t* q, int n, int apart, uint8_t* out) {
    for (int i = 0; i < n; i++) out[i] = static_cast<uint8_t>(q[i] & 15) | static_cast<uint8_t>(q[i + apart] << 4);
}

// bit 4 of 32 levels; the product brings the lowest bits of eight bytes, the first lowest, into the highest byte
void fifth_bits(const uint8_t* q, uint8_t* out) {
    for (int j = 0; j < 4; j++) {
        uint64_t eight;
        std::memcpy(&eight, q + 8 * j, 8);
        out[j] = static_cast<uint8_t>((eight >> 4 & 0x0101010101010101) * 0x0102040810204080 >> 56);
    }
}

// one bit of each level, eight levels 32 apart in a byte
template <int bit>
void eighths(const uint8_t* q, uint8_t* out) {
    std::memset(out, 0, 32);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) out[i] = static_cast<uint8_t>(out[i] | (q[32 * j + i] >> bit & 1) << j);
}

// eight 6-bit scales and minima in 12 bytes
void six_bits(const uint8_t* scale, const uint8_t* minimum, uint8_t* out) {
    for (int j = 0; j < 4; j++) {
        out[j] = static_cast<uint8_t>(scale[j] | scale[j + 4] >> 4 << 6);
        out[j + 4] = static_cast<uint8_t>(minimum[j] | minimum[j + 4] >> 4 << 6);
        out[j + 8] = static_cast<uint8_t>((scale[j + 4] & 15) | (minimum[j + 4] & 15) << 4);
    }
}

void q4_k(const uint8_t* q, uint8_t* out) {
    for (int j = 0; j < 4; j++) nibbles(q + 64 * j, 32, 32, out + 32 * j);
}

void q5_k(const uint8_t* q, uint8_t* out) {
    eighths<4>(q, out);
    q4_k(q, out + 32);
}

// the lowest two bits, four levels 32 apart in a byte
void pairs(const uint8_t* q, uint8_t* out) {
    for (int h = 0; h < 2; h++, q += 128, out += 32)
        for (int i = 0; i < 32; i++)
            out[i] = static_cast<uint8_t>((q[i] & 3) | (q[i + 32] & 3) << 2 | (q[i + 64] & 3) << 4 | (q[i + 96] & 3) << 6);
}

void q2_k(const uint8_t* q, const uint8_t* scale, const uint8_t* minimum, uint8_t* out) {
    for (int j = 0; j < 16; j++) out[j] = static_cast<uint8_t>(scale[j] | minimum[j] << 4);
    pairs(q, out + 16);
}

void q3_k(const uint8_t* q, const uint8_t* scale, uint8_t* out) {
    eighths<2>(q, out);
    pairs(q, out + 32);
    nibbles(scale, 8, 8, out + 96);
    for (int j = 0; j < 4; j++)
        out[104 + j] =
            static_cast<uint8_t>(scale[j] >> 4 | scale[j + 4] >> 4 << 2 | scale[j + 8] >> 4 << 4 | scale[j + 12] >> 4 << 6);
}

void q6_k(const uint8_t* q, uint8_t* out) {
    for (int h = 0; h < 2; h++, q += 128) {
        nibbles(q, 64, 64, out + 64 * h);
        for (int i = 0; i < 32; i++)
            out[128 + 32 * h + i] =
                static_cast<uint8_t>(q[i] >> 4 | q[i + 32] >> 4 << 2 | q[i + 64] >> 4 << 4 | q[i + 96] >> 4 << 6);
    }
}

void iq4_xs(const uint8_t* q, const uint8_t* scale, uint8_t* out) {
    unsigned high = 0;
    for (int j = 0; j < 8; j++) high |= (scale[j] >> 4 & 3u) << 2 * j;
    out[2] = static_cast<uint8_t>(high), out[3] = static_cast<uint8_t>(high >> 8);
    for (int j = 0; j < 4; j++) out[4 + j] = static_cast<uint8_t>((scale[2 * j] & 15) | (scale[2 * j + 1] & 15) << 4);
    for (int j = 0; j < 8; j++) nibbles(q + 32 * j, 16, 16, out + 8 + 16 * j);
}

// the number of each of the table's levels, at level + 127
struct Codes {
    uint8_t of[256] = {};
    constexpr Codes() {
        const int levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
        for (int i = 0; i < 16; i++) of[levels[i] + 127] = static_cast<uint8_t>(i);
    }
};
constexpr Codes kCodes;

// what is added to signed levels and scales, so that the file's are not
constexpr int level_offset(Type type) {
    return type == Type::Q6_K ? 32 : type == Type::Q5_0 ? 16 : type == Type::Q4_0 ? 8 : type == Type::Q3_K ? 4 : 0;
}
constexpr int scale_offset(Type type) { return type == Type::Q3_K || type == Type::IQ4_XS ? 32 : 0; }

void half(uint16_t bits, uint8_t* out) { std::memcpy(out, &bits, 2); }

}  // namespace

void encode(Type type, const Rounded& r, int lane, uint8_t* p) {
    uint8_t q[256], scale[16], minimum[16];
    const bool table = type == Type::IQ4_NL || type == Type::IQ4_XS;
    const int n = static_cast<int>(rounded_columns(type)), offset = level_offset(type);
    for (int i = 0; i < n; i++) q[i] = static_cast<uint8_t>(r.q[lane][i] + offset);
    if (table)
        for (int i = 0; i < n; i++) q[i] = kCodes.of[static_cast<uint8_t>(r.q[lane][i] + 127)];
    for (int j = 0; j < 16 && n == 256; j++) {
        scale[j] = static_cast<uint8_t>(r.scale[j][lane] + scale_offset(type));
        minimum[j] = static_cast<uint8_t>(r.minimum[j][lane]);
    }
    const uint16_t d = r.d[lane], least = r.least[lane];
    switch (type) {
        case Type::Q8_0:
            return half(d, p), void(std::memcpy(p + 2, q, 32));
        case Type::Q4_0:
        case Type::IQ4_NL:
            return half(d, p), nibbles(q, 16, 16, p + 2);
        case Type::Q4_1:
            return half(d, p), half(least, p + 2), nibbles(q, 16, 16, p + 4);
        case Type::Q5_0:
            return half(d, p), fifth_bits(q, p + 2), nibbles(q, 16, 16, p + 6);
        case Type::Q5_1:
            return half(d, p), half(least, p + 2), fifth_bits(q, p + 4), nibbles(q, 16, 16, p + 8);
        case Type::Q2_K:
            return q2_k(q, scale, minimum, p), half(d, p + 80), half(least, p + 82);
        case Type::Q3_K:
            return q3_k(q, scale, p), half(d, p + 108);
        case Type::Q4_K:
            return half(d, p), half(least, p + 2), six_bits(scale, minimum, p + 4), q4_k(q, p + 16);
        case Type::Q5_K:
            return half(d, p), half(least, p + 2), six_bits(scale, minimum, p + 4), q5_k(q, p + 16);
        case Type::Q6_K:
            return q6_k(q, p), void(std::memcpy(p + 192, scale, 16)), half(d, p + 208);
        case Type::IQ4_XS:
            return half(d, p), iq4_xs(q, scale, p);
        default:
            return;
    }
}

}  // namespace bise
