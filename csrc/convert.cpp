// Types that have no kernel of their own become the nearest one that has:
//   exactly            Q5_0, IQ4_NL -> Q8_0 (same scale, the integer it stands for)     Q3_K -> Q6_K (same scales)
//   nearly exactly     IQ4_XS -> Q8_0 (the integer exactly; the product of its two scales rounded to float16)
//   by rounding        Q4_1, Q5_1, Q2_K -> Q8_0 (largest magnitude of 32 becomes 127)
// Layouts in the file:
//   Q4_1  f16 d, m; u8 q[16]             Q5_0  f16 d; u32 high; u8 q[16]            Q5_1  f16 d, m; u32 high; u8 q[16]
//   Q2_K  u8 scales[16]; u8 q[64]; f16 d, dmin                                      Q3_K  u8 high[32]; u8 q[64]; u8 scales[12];
//   f16 d IQ4_NL  f16 d; u8 q[16]              IQ4_XS  f16 d; u16 scales_high; u8 scales_low[4]; u8 q[128]
#include <cmath>

#include "half.h"
#include "pack.h"

namespace bise {
namespace {

constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void put_half(uint8_t* p, uint16_t h) { std::memcpy(p, &h, 2); }
int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }  // column i of 32
int fifth(uint32_t high, int i) { return static_cast<int>((high >> i) & 1) << 4; }

// d and 32 integers
template <class Fn>
void exact_q8_0(uint16_t d, uint8_t* out, Fn integer) {
    put_half(out, d);
    for (int i = 0; i < 32; i++) out[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(integer(i)));
}

void round_q8_0(const float* x, bool sound, uint8_t* out) {
    float top = 0;
    for (int i = 0; i < 32; i++) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
    const uint16_t d = sound ? to_f16(top / 127) : 0x7e00;
    const float scale = from_f16(d);
    exact_q8_0(d, out, [&](int i) {
        if (!sound || !(scale > 0) || !std::isfinite(scale)) return 0;
        const float q = std::nearbyint(x[i] / scale);
        return static_cast<int>(q > 127 ? 127 : q < -127 ? -127 : q);
    });
}

void q4_1(const uint8_t* p, bool five, uint8_t* out) {
    const uint16_t d = read<uint16_t>(p), m = read<uint16_t>(p + 2);
    const uint32_t high = five ? read<uint32_t>(p + 4) : 0;
    float x[32];
    for (int i = 0; i < 32; i++) {
        x[i] = from_f16(d) * static_cast<float>(nibble(p + (five ? 8 : 4), i) | fifth(high, i)) + from_f16(m);
    }
    round_q8_0(x, sound_f16(d) && sound_f16(m), out);
}

void q2_k(const uint8_t* p, uint8_t* out) {  // -> 8 blocks of Q8_0
    const uint16_t d = read<uint16_t>(p + 80), dmin = read<uint16_t>(p + 82);
    for (int s = 0; s < 8; s++, out += 34) {
        float x[32];
        for (int i = 0; i < 32; i++) {
            const int q = (p[16 + s / 4 * 32 + i] >> (s % 4 * 2)) & 3, scales = p[2 * s + i / 16];
            x[i] = from_f16(d) * static_cast<float>((scales & 15) * q) - from_f16(dmin) * static_cast<float>(scales >> 4);
        }
        round_q8_0(x, sound_f16(d) && sound_f16(dmin), out);
    }
}

void q3_k(const uint8_t* p, uint8_t* out) {  // -> one block of Q6_K
    const uint8_t *high = p, *low = p + 32, *scales = p + 96;
    std::memset(out, 0, 192);
    for (int k = 0; k < 256; k++) {
        const int half = k / 128, quarter = k % 128 / 32, i = k % 32;
        const int q = ((low[32 * half + i] >> (2 * quarter)) & 3) - ((high[i] >> (4 * half + quarter)) & 1 ? 0 : 4) + 32;
        out[64 * half + 32 * (quarter % 2) + i] |= static_cast<uint8_t>((q & 15) << (quarter / 2 * 4));
        out[128 + 32 * half + i] |= static_cast<uint8_t>((q >> 4) << (2 * quarter));
    }
    for (int g = 0; g < 16; g++) {
        const int four = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4, two = (scales[8 + g % 4] >> (g / 4 * 2)) & 3;
        out[192 + g] = static_cast<uint8_t>((four | two << 4) - 32);
    }
    std::memcpy(out + 208, p + 108, 2);
}

void iq4_xs(const uint8_t* p, uint8_t* out) {  // -> 8 blocks of Q8_0
    const uint16_t d = read<uint16_t>(p), high = read<uint16_t>(p + 2);
    for (int s = 0; s < 8; s++, out += 34) {
        const int scale = (((p[4 + s / 2] >> (s % 2 * 4)) & 15) | (((high >> (2 * s)) & 3) << 4)) - 32;
        const uint16_t product = sound_f16(d) ? to_f16(from_f16(d) * static_cast<float>(scale)) : d;
        exact_q8_0(product, out, [&](int i) { return kIq4[nibble(p + 8 + 16 * s, i)]; });
    }
}

void convert_block(Other type, const uint8_t* p, uint8_t* out) {
    switch (type) {
        case Other::Q4_1:
            return q4_1(p, false, out);
        case Other::Q5_1:
            return q4_1(p, true, out);
        case Other::Q2_K:
            return q2_k(p, out);
        case Other::Q3_K:
            return q3_k(p, out);
        case Other::IQ4_XS:
            return iq4_xs(p, out);
        case Other::IQ4_NL:
            return exact_q8_0(read<uint16_t>(p), out, [&](int i) { return kIq4[nibble(p + 2, i)]; });
        case Other::Q5_0: {
            const uint32_t high = read<uint32_t>(p + 2);
            return exact_q8_0(read<uint16_t>(p), out, [&](int i) { return (nibble(p + 6, i) | fifth(high, i)) - 16; });
        }
    }
}

}  // namespace

Type nearest(Other type) { return type == Other::Q3_K ? Type::Q6_K : Type::Q8_0; }

i64 block_columns(Other type) { return type == Other::Q2_K || type == Other::Q3_K || type == Other::IQ4_XS ? 256 : 32; }

i64 row_bytes(Other type, i64 cols) {
    constexpr i64 bytes[kOthers] = {20, 22, 24, 84, 110, 18, 136};
    return cols / block_columns(type) * bytes[static_cast<int>(type)];
}

void convert_row(Other type, const uint8_t* row, i64 cols, uint8_t* out) {
    const i64 step = block_columns(type), from = row_bytes(type, step), to = row_bytes(nearest(type), step);
    for (i64 k = 0; k < cols; k += step, row += from, out += to) convert_block(type, row, out);
}

}  // namespace bise
