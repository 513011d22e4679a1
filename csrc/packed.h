// The packed blocks as the dot products see them: 16 rows x 256 columns, lane = row.
// A block is a run of 64-byte vectors; "quant j" is the vector with the 4 columns 4j..4j+3 of every row as bytes
// (pack.cpp has the byte layout of the file; the packed vectors are its 4-byte words, transposed).
//
//   by 256 columns   w = d * scale[g] * (quant - offset) - dmin * minimum[g]     Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS
//   by 32 columns    w = d[s] * (quant - offset) + m[s]                          Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 IQ4_NL
//
// Q8_0, IQ4_NL and IQ4_XS have signed quants. Where `dot` wants unsigned bytes (kBiased) they are 128 higher, offset 128.
#pragma once
#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace bise {
namespace {

BISE_INLINE I bytes(int x) { return set1_i(x * 0x01010101); }
BISE_INLINE I nibble(I x, int high) { return and_i(high ? shr<4>(x) : x, bytes(0x0f)); }
BISE_INLINE I biased(I x) { return kBiased ? xor_i(x, set1_i(static_cast<int32_t>(0x80808080))) : x; }
constexpr int kBias = kBiased ? 128 : 0;
constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};  // of a nibble

// x << n, or x >> -n
template <int n>
BISE_INLINE I shift(I x) {
    if constexpr (n >= 0)
        return shl<n>(x);
    else
        return shr<-n>(x);
}
// byte n of every lane, as int32
template <int n>
BISE_INLINE I byte_of(I x) {
    return and_i(shr<8 * n>(x), set1_i(0xff));
}
template <int n>
BISE_INLINE I signed_byte_of(I x) {
    return sar<24>(shl<24 - 8 * n>(x));
}
BISE_INLINE F halves(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }

template <Type type>
struct Packed;

// ---- by 256 columns. `minima` are int16 pairs, as Act256 has the sums of activations that they meet.

// The 6-bit scales and minima of Q4_K and Q5_K, 12 bytes a row as three transposed words; float16 d[16], dmin[16] before.
struct Scales6 {
    static constexpr int per_scale = 8, minima_count = 4, offset = 0;  // quants to a scale; pairs of minima
    static constexpr bool is_signed = false;
    using Act = Act256;
    const uint8_t* p;
    I scale[2], minimum[2];  // bytes 0..3: groups 0..3, then 4..7
    Scales6() = default;
    BISE_INLINE explicit Scales6(const uint8_t* block) : p(block) {
        const I a = load_i(p + 64), b = load_i(p + 128), c = load_i(p + 192), high2 = bytes(0x30);
        scale[0] = and_i(a, bytes(0x3f)), minimum[0] = and_i(b, bytes(0x3f));
        scale[1] = or_i(nibble(c, 0), and_i(shr<2>(a), high2));
        minimum[1] = or_i(nibble(c, 1), and_i(shr<2>(b), high2));
    }
    BISE_INLINE F d() const { return halves(p); }
    BISE_INLINE F dmin() const { return halves(p + 32); }
    template <int g>
    BISE_INLINE Scale scaled(Constant<g>) const {
        return to_scale(byte_of<g % 4>(scale[g / 4]));
    }
    template <int i>
    BISE_INLINE I minima(Constant<i>) const {  // groups (0,2) (1,3) (4,6) (5,7)
        return and_i(i % 2 ? shr<8>(minimum[i / 2]) : minimum[i / 2], set1_i(0x00ff00ff));
    }
};

template <>
struct Packed<Type::Q4_K> : Scales6 {  // words qs[32][16] at 256
    static constexpr int top = 15;     // largest quant
    using Scales6::Scales6;
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        return nibble(load_i(p + 256 + 64 * (j / 16 * 8 + j % 8)), j / 8 % 2);
    }
};

template <>
struct Packed<Type::Q5_K> : Scales6 {  // words qh[8][16], qs[32][16]
    static constexpr int top = 31;
    using Scales6::Scales6;
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        constexpr int s = j / 8;  // its bit of qh
        const I low = nibble(load_i(p + 768 + 64 * (j / 16 * 8 + j % 8)), s % 2);
        return or_i(low, and_i(shift<4 - s>(load_i(p + 256 + 64 * (j % 8))), bytes(0x10)));
    }
};

template <>
struct Packed<Type::Q2_K> {  // float16 d[16], dmin[16]; words scales[4][16] (low nibble scale, high minimum), qs[16][16]
    static constexpr int top = 3, per_scale = 4, minima_count = 8, offset = 0;
    static constexpr bool is_signed = false;
    using Act = Act256;
    const uint8_t* p;
    Packed() = default;
    BISE_INLINE explicit Packed(const uint8_t* block) : p(block) {}
    BISE_INLINE F d() const { return halves(p); }
    BISE_INLINE F dmin() const { return halves(p + 32); }
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        return and_i(shr<j / 8 % 4 * 2>(load_i(p + 320 + 64 * (j / 32 * 8 + j % 8))), bytes(3));
    }
    template <int g>
    BISE_INLINE Scale scaled(Constant<g>) const {
        return to_scale(and_i(shr<8 * (g % 4)>(load_i(p + 64 + 64 * (g / 4))), set1_i(15)));
    }
    template <int i>
    BISE_INLINE I minima(Constant<i>) const {  // groups (4n, 4n+2) (4n+1, 4n+3)
        return and_i(shr<i % 2 ? 12 : 4>(load_i(p + 64 + 64 * (i / 2))), set1_i(0x000f000f));
    }
};

// Signed scales of 16 columns and an offset, which is a minimum where sums cannot start at it. Child has word_of_scales(n).
template <class Child, int minimum>
struct Scales8 {
    static constexpr int per_scale = 4, minima_count = kNarrow ? 8 : 0;
    static constexpr bool is_signed = false;
    using Act = Act256;
    const uint8_t* p;  // float32 d[16] first
    Scales8() = default;
    BISE_INLINE explicit Scales8(const uint8_t* block) : p(block) {}
    BISE_INLINE F d() const { return load(reinterpret_cast<const float*>(p)); }
    BISE_INLINE F dmin() const { return mul(d(), set1(minimum)); }
    BISE_INLINE const Child& child() const { return *static_cast<const Child*>(this); }
    template <int g>
    BISE_INLINE Scale scaled(Constant<g>) const {
        return to_scale(signed_byte_of<g % 4>(child().word_of_scales(Constant<g / 4>{})));
    }
    template <int i>
    BISE_INLINE I minima(Constant<i>) const {  // groups (4n, 4n+2) (4n+1, 4n+3)
        const I s = child().word_of_scales(Constant<i / 2>{});
        return i % 2 ? high_bytes16(s) : low_bytes16(s);
    }
};

template <>
struct Packed<Type::Q6_K> : Scales8<Packed<Type::Q6_K>, 32> {  // words scales[4][16]; words ql[32][16]; words qh[16][16]
    static constexpr int top = 63, offset = 32;
    using Scales8::Scales8;
    template <int n>
    BISE_INLINE I word_of_scales(Constant<n>) const {
        return load_i(p + 64 + 64 * n);
    }
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        constexpr int half = j / 32, quarter = j / 8 % 4;
        const I low = nibble(load_i(p + 320 + 64 * (16 * half + 8 * (quarter % 2) + j % 8)), quarter / 2);
        return or_i(low, and_i(shift<4 - 2 * quarter>(load_i(p + 2368 + 64 * (8 * half + j % 8))), bytes(0x30)));
    }
};

// Words scales[3][16] (6 bits each, 32 higher than they are), hmask[8][16], qs[16][16]. An offset of 4, which is 32 for
// quants that are 28 higher: the sums of activations are there for it.
template <>
struct Packed<Type::Q3_K> : Scales8<Packed<Type::Q3_K>, 4> {
    static constexpr int top = 7, offset = kNarrow ? 4 : 32;
    using Scales8::Scales8;
    template <int n>
    BISE_INLINE I word_of_scales(Constant<n>) const {
        const I low = nibble(load_i(p + 64 + 64 * (n % 2)), n / 2), high = and_i(shr<2 * n>(load_i(p + 192)), bytes(3));
        const I six = xor_i(or_i(low, shl<4>(high)), bytes(0x20)), sign = and_i(six, bytes(0x20));
        return or_i(six, or_i(shl<1>(sign), shl<2>(sign)));  // bit 5 is the sign: copied into 6 and 7
    }
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        constexpr int s = j / 8;  // its bit of hmask
        const I low = and_i(shr<s % 4 * 2>(load_i(p + 768 + 64 * (j / 32 * 8 + j % 8))), bytes(3));
        const I q = or_i(low, and_i(shift<2 - s>(load_i(p + 256 + 64 * (j % 8))), bytes(4)));
        return kNarrow ? q : add_i(q, bytes(28));
    }
};

template <>
struct Packed<Type::IQ4_XS> {  // float16 d[16]; uint16 high[16]; words low[16]: 6-bit scales, 32 higher; words qs[32][16]
    static constexpr int top = 127, per_scale = 8, minima_count = 0, offset = kBias;
    static constexpr bool is_signed = true;
    using Act = Act256;
    const uint8_t* p;
    I low, high;
    Packed() = default;
    BISE_INLINE explicit Packed(const uint8_t* block)
        : p(block), low(load_i(p + 64)), high(bits(load_bf16(reinterpret_cast<const uint16_t*>(p + 32)))) {}
    BISE_INLINE F d() const { return halves(p); }
    BISE_INLINE F dmin() const { return zero(); }
    template <int g>
    BISE_INLINE Scale scaled(Constant<g>) const {
        const I six = or_i(and_i(shr<4 * g>(low), set1_i(15)), and_i(shr<12 + 2 * g>(high), set1_i(0x30)));
        return to_scale(add_i(six, set1_i(-32)));
    }
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        return biased(lookup(nibble(load_i(p + 128 + 64 * (j / 8 * 4 + j % 4)), j / 4 % 2), kIq4));
    }
};

// ---- by 32 columns: float16 d[8][16] first, then m[8][16] where there are minima, then the quants at `at`

template <int quants_at, int offset_, bool minima>
struct By32 {
    static constexpr int offset = offset_, at = quants_at;
    static constexpr bool has_minima = minima, is_signed = false;
    using Act = Act32;
    const uint8_t* p;
    By32() = default;
    BISE_INLINE explicit By32(const uint8_t* block) : p(block) {}
    template <int s>
    BISE_INLINE F d(Constant<s>) const {
        return halves(p + 32 * s);
    }
    template <int s>
    BISE_INLINE F m(Constant<s>) const {
        return halves(p + 256 + 32 * s);
    }
    template <int j>
    BISE_INLINE I four_bits(Constant<j>) const {  // low nibbles columns 0..15 of 32, high 16..31
        return nibble(load_i(p + at + 64 * (j / 8 * 4 + j % 4)), j / 4 % 2);
    }
    template <int j>
    BISE_INLINE I
    five_bits(Constant<j>) const {  // words of fifth bits before the quants, one for 32 columns: bit j % 8 of every byte
        return or_i(four_bits(Constant<j>{}), and_i(shift<4 - j % 8>(load_i(p + at - 512 + 64 * (j / 8))), bytes(0x10)));
    }
};

template <>
struct Packed<Type::Q8_0> : By32<256, kBias, false> {
    static constexpr bool is_signed = true;
    static constexpr int top = 127;
    using By32::By32;
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        return biased(load_i(p + at + 64 * j));
    }
};
template <>
struct Packed<Type::IQ4_NL> : By32<256, kBias, false> {
    static constexpr bool is_signed = true;
    static constexpr int top = 127;
    using By32::By32;
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        return biased(lookup(four_bits(Constant<j>{}), kIq4));
    }
};
template <int at, int offset, bool minima>
struct Nibbles : By32<at, offset, minima> {
    static constexpr int top = 15;
    using By32<at, offset, minima>::By32;
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        return this->four_bits(Constant<j>{});
    }
};
template <int at, int offset, bool minima>
struct Fives : By32<at, offset, minima> {
    static constexpr int top = 31;
    using By32<at, offset, minima>::By32;
    template <int j>
    BISE_INLINE I quant(Constant<j>) const {
        return this->five_bits(Constant<j>{});
    }
};
template <>
struct Packed<Type::Q4_0> : Nibbles<256, 8, false> {
    using Nibbles::Nibbles;
};
template <>
struct Packed<Type::Q4_1> : Nibbles<512, 0, true> {
    using Nibbles::Nibbles;
};
template <>
struct Packed<Type::Q5_0> : Fives<768, 16, false> {
    using Fives::Fives;
};
template <>
struct Packed<Type::Q5_1> : Fives<1024, 0, true> {
    using Fives::Fives;
};

// ---- A block taken apart once for many columns: the same face as Packed, with every quant a byte and every scale ready.

template <class From>
struct alignas(64) Unpacked256 : From {
    I quants[64], pairs[From::minima_count + 1];
    Scale scales[64 / From::per_scale];
    F factor, minimum;
    BISE_INLINE void open(const uint8_t* block) {
        const From from(block);
        unroll<64>([&](auto j) BISE_LAMBDA { quants[j] = from.quant(j); });
        unroll<64 / From::per_scale>([&](auto g) BISE_LAMBDA { scales[g] = from.scaled(g); });
        if constexpr (From::minima_count != 0) unroll<From::minima_count>([&](auto i) BISE_LAMBDA { pairs[i] = from.minima(i); });
        factor = from.d(), minimum = from.dmin();
    }
    BISE_INLINE F d() const { return factor; }
    BISE_INLINE F dmin() const { return minimum; }
    BISE_INLINE I quant(int j) const { return quants[j]; }
    BISE_INLINE Scale scaled(int g) const { return scales[g]; }
    BISE_INLINE I minima(int i) const { return pairs[i]; }
};

template <class From>
struct alignas(64) Unpacked32 : From {
    I quants[64];
    F factors[8], minimums[8];
    BISE_INLINE void open(const uint8_t* block) {
        const From from(block);
        unroll<64>([&](auto j) BISE_LAMBDA { quants[j] = from.quant(j); });
        unroll<8>([&](auto s) BISE_LAMBDA {
            factors[s] = from.d(s);
            if constexpr (From::has_minima) minimums[s] = from.m(s);
        });
    }
    BISE_INLINE F d(int s) const { return factors[s]; }
    BISE_INLINE F m(int s) const { return minimums[s]; }
    BISE_INLINE I quant(int j) const { return quants[j]; }
};

template <Type type>
using Unpacked = std::conditional_t<by_256(type), Unpacked256<Packed<type>>, Unpacked32<Packed<type>>>;

}  // namespace
}  // namespace bise
