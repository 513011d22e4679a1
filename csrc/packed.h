// The packed blocks as the dot products see them: 16 rows x 256 columns, lane = row.
// A block is a run of 64-byte vectors; "quant j" is the vector with the 4 columns 4j..4j+3 of every row as unsigned bytes
// (pack.cpp has the byte layout of the file; the packed vectors are its 4-byte words, transposed).
// What the K types share:   w = d * scale[g] * quant - dmin * minimum[s]    (Q4_K, Q5_K; g = s, one per 32 columns)
//                           w = d * scale[g] * (quant - 32)                 (Q6_K; one scale per 16 columns)
// and the plain types:      w = d[s] * (quant - offset)                     (Q8_0: offset 128, Q4_0: 8; one per 32 columns)
#pragma once
#include "kernels.h"
#include "simd.h"

namespace bise {
namespace {

BISE_INLINE I nibble(I x, int high) { return and_i(high ? shr<4>(x) : x, set1_i(0x0f0f0f0f)); }

// byte n of every lane, as int32
template <int n>
BISE_INLINE I byte_of(I x) {
    return and_i(shr<8 * n>(x), set1_i(0xff));
}
template <int n>
BISE_INLINE I signed_byte_of(I x) {
    return sar<24>(shl<24 - 8 * n>(x));
}

// The 6-bit scales and minima of Q4_K and Q5_K, 12 bytes a row as three transposed words.
struct Scales6 {
    I scale[2], minimum[2];  // bytes 0..3: groups 0..3, then 4..7
    Scales6() = default;
    BISE_INLINE explicit Scales6(const uint8_t* p) {
        const I a = load_i(p), b = load_i(p + 64), c = load_i(p + 128);
        const I low6 = set1_i(0x3f3f3f3f), high2 = set1_i(0x30303030);
        scale[0] = and_i(a, low6), minimum[0] = and_i(b, low6);
        scale[1] = or_i(nibble(c, 0), and_i(shr<2>(a), high2));
        minimum[1] = or_i(nibble(c, 1), and_i(shr<2>(b), high2));
    }
    template <int i>
    BISE_INLINE I minima() const {  // int16 pairs: groups (0,2) (1,3) (4,6) (5,7)
        const I m = minimum[i / 2], even = set1_i(0x00ff00ff);
        return i % 2 ? and_i(shr<8>(m), even) : and_i(m, even);
    }
};

template <Type type>
struct Packed;

// What Q4_K and Q5_K share: float16 d[16], dmin[16]; words scales[3][16]; then the quants.
struct WithMinima {
    static constexpr int per_scale = 8, offset = 0;  // quants to a scale
    static constexpr bool has_minima = true;
    using Act = Act256;
    const uint8_t* p;
    Scales6 six;
    WithMinima() = default;
    BISE_INLINE explicit WithMinima(const uint8_t* block) : p(block), six(block + 64) {}
    BISE_INLINE F d() const { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
    BISE_INLINE F dmin() const { return load_f16(reinterpret_cast<const uint16_t*>(p) + 16); }
    template <int g>
    BISE_INLINE I scale() const {
        return byte_of<g % 4>(six.scale[g / 4]);
    }
    template <int i>
    BISE_INLINE I minima() const {
        return six.minima<i>();
    }
};

template <>
struct Packed<Type::Q4_K> : WithMinima {  // words qs[32][16]
    static constexpr int top = 15;        // largest quant
    using WithMinima::WithMinima;
    template <int j>
    BISE_INLINE I quant() const {
        return nibble(load_i(p + 256 + 64 * (j / 16 * 8 + j % 8)), j / 8 % 2);
    }
};

template <>
struct Packed<Type::Q5_K> : WithMinima {  // words qh[8][16], qs[32][16]
    static constexpr int top = 31;
    using WithMinima::WithMinima;
    template <int j>
    BISE_INLINE I quant() const {
        constexpr int s = j / 8;  // its bit of qh
        const I low = nibble(load_i(p + 768 + 64 * (j / 16 * 8 + j % 8)), s % 2), h = load_i(p + 256 + 64 * (j % 8));
        if constexpr (s < 4)
            return or_i(low, and_i(shl<4 - s>(h), set1_i(0x10101010)));
        else
            return or_i(low, and_i(shr<s - 4>(h), set1_i(0x10101010)));
    }
};

template <>
struct Packed<Type::Q6_K> {
    static constexpr int top = 63, per_scale = 4, offset = 32;
    static constexpr bool has_minima = kNarrow;  // the offset as a minimum, where sums cannot start at it
    using Act = Act256;
    const uint8_t* p;  // float32 d[16]; words scales[4][16]; words ql[32][16]; words qh[16][16]
    Packed() = default;
    BISE_INLINE explicit Packed(const uint8_t* block) : p(block) {}
    BISE_INLINE F d() const { return load(reinterpret_cast<const float*>(p)); }
    BISE_INLINE F dmin() const { return mul(d(), set1(32.0f)); }
    template <int j>
    BISE_INLINE I quant() const {
        constexpr int half = j / 32, quarter = j / 8 % 4;
        const I low = nibble(load_i(p + 320 + 64 * (16 * half + 8 * (quarter % 2) + j % 8)), quarter / 2);
        const I h = load_i(p + 2368 + 64 * (8 * half + j % 8)), two = set1_i(0x30303030);
        if constexpr (quarter < 2)
            return or_i(low, and_i(shl<4 - 2 * quarter>(h), two));
        else
            return or_i(low, and_i(shr<2 * quarter - 4>(h), two));
    }
    template <int g>
    BISE_INLINE I scale() const {
        return signed_byte_of<g % 4>(load_i(p + 64 + 64 * (g / 4)));
    }
    template <int i>
    BISE_INLINE I minima() const {  // the scales as int16 pairs: groups (4n, 4n+2), (4n+1, 4n+3)
        const I s = load_i(p + 64 + 64 * (i / 2));
        return i % 2 ? high_bytes16(s) : low_bytes16(s);
    }
};

template <>
struct Packed<Type::Q8_0> {
    static constexpr int offset = 128;
    static constexpr bool is_signed = kNarrow;  // there: signed bytes as they are, no offset
    using Act = Act32;
    const uint8_t* p;  // float16 d[8][16]; words qs[64][16]
    Packed() = default;
    BISE_INLINE explicit Packed(const uint8_t* block) : p(block) {}
    template <int s>
    BISE_INLINE F d() const {
        return load_f16(reinterpret_cast<const uint16_t*>(p) + 16 * s);
    }
    template <int j>
    BISE_INLINE I quant() const {
        const I q = load_i(p + 256 + 64 * j);
        return is_signed ? q : xor_i(q, set1_i(static_cast<int32_t>(0x80808080)));
    }
};

template <>
struct Packed<Type::Q4_0> {
    static constexpr int offset = 8;
    static constexpr bool is_signed = false;
    using Act = Act32;
    const uint8_t* p;  // float16 d[8][16]; words qs[32][16]: low nibbles columns 0..15 of 32, high 16..31
    Packed() = default;
    BISE_INLINE explicit Packed(const uint8_t* block) : p(block) {}
    template <int s>
    BISE_INLINE F d() const {
        return load_f16(reinterpret_cast<const uint16_t*>(p) + 16 * s);
    }
    template <int j>
    BISE_INLINE I quant() const {
        return nibble(load_i(p + 256 + 64 * (j / 8 * 4 + j % 4)), j / 4 % 2);
    }
};

// A block taken apart once for many columns: the same face as Packed, every quant a byte.
template <Type type>
struct alignas(64) Unpacked : Packed<type> {
    using From = Packed<type>;
    uint8_t q[64 * 64];
    BISE_INLINE void open(const uint8_t* block) {
        const From from(block);
        static_cast<From&>(*this) = from;
        unroll<64>([&](auto j) BISE_LAMBDA { store_i(q + 64 * j, from.template quant<j>()); });
    }
    template <int j>
    BISE_INLINE I quant() const {
        return load_i(q + 64 * j);
    }
};

}  // namespace
}  // namespace bise
