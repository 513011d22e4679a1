// Layouts in the file (the GGUF specification, one row of blocks after the other):
//   Q8_0    f16 d; i8 q[32]                                     Q4_0, IQ4_NL  f16 d; u8 q[16] (low nibbles first half)
//   Q5_0    f16 d; u32 fifth (bit i: column i); u8 q[16]        Q4_1, Q5_1    f16 d, m; the rest as Q4_0, Q5_0
//   Q4_K    f16 d, dmin; u8 scales[12]; u8 q[128]               Q5_K          f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 q[128]
//   Q2_K    u8 scales[16]; u8 q[64]; f16 d, dmin                Q3_K          u8 hmask[32]; u8 q[64]; u8 scales[12]; f16 d
//   Q6_K    u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d         IQ4_XS        f16 d; u16 high; u8 low[4]; u8 q[128]
// In a panel the 4-byte words of 16 rows lie side by side, word by word; packed.h has the order of the parts.
#include "pack.h"

#include "half.h"

namespace bise {
namespace {

// words w[i] of one row go to lane r of vectors i = 0, 1, ...
void words(const uint8_t* from, int n, i64 r, uint8_t* to) {
    for (int i = 0; i < n; i++) std::memcpy(to + 64 * i + 4 * r, from + 4 * i, 4);
}
bool half(const uint8_t* from, i64 r, uint8_t* to) {
    std::memcpy(to + 2 * r, from, 2);
    return sound_f16(read<uint16_t>(from));
}

bool float_of_half(const uint8_t* from, i64 r, uint8_t* to) {
    const float d = from_f16(read<uint16_t>(from));
    std::memcpy(to + 4 * r, &d, 4);
    return sound_f16(read<uint16_t>(from));
}
// bit 4 j + t of 32 becomes bit j of byte t
uint32_t by_column(uint32_t fifth) {
    uint32_t x = 0;
    for (int i = 0; i < 32; i++) x |= (fifth >> i & 1) << (i % 4 * 8 + i / 4);
    return x;
}

// 256 columns of one row
bool pack_256(Type type, const uint8_t* in, i64 r, uint8_t* out) {
    bool sound;
    switch (type) {
        case Type::Q2_K:
            words(in, 4, r, out + 64);
            words(in + 16, 16, r, out + 320);
            return half(in + 80, r, out) & half(in + 82, r, out + 32);
        case Type::Q3_K:
            words(in + 96, 3, r, out + 64);
            words(in, 8, r, out + 256);
            words(in + 32, 16, r, out + 768);
            return float_of_half(in + 108, r, out);
        case Type::Q6_K:
            words(in + 192, 4, r, out + 64);
            words(in, 32, r, out + 320);
            words(in + 128, 16, r, out + 2368);
            return float_of_half(in + 208, r, out);
        case Type::IQ4_XS:
            sound = half(in, r, out);
            half(in + 2, r, out + 32);  // not a float: the high bits of the scales
            words(in + 4, 33, r, out + 64);
            return sound;
        default:  // Q4_K, Q5_K: scales, then quants
            sound = half(in, r, out) & half(in + 2, r, out + 32);
            words(in + 4, type == Type::Q4_K ? 35 : 43, r, out + 64);
            return sound;
    }
}

// columns 32 s to 32 s + 31 of one row
bool pack_32(Type type, const uint8_t* in, i64 s, i64 r, uint8_t* out) {
    const bool minima = type == Type::Q4_1 || type == Type::Q5_1, five = type == Type::Q5_0 || type == Type::Q5_1;
    const int n = type == Type::Q8_0 ? 8 : 4;
    bool sound = half(in, r, out + 32 * s);
    in += 2, out += 256;
    if (minima) {
        sound &= half(in, r, out + 32 * s);
        in += 2, out += 256;
    }
    if (five) {
        const uint32_t fifth = by_column(read<uint32_t>(in));
        std::memcpy(out + 64 * s + 4 * r, &fifth, 4);
        in += 4, out += 512;
    }
    words(in, n, r, out + 64 * n * s);
    return sound;
}

template <class X>
bool pack_floats(const uint8_t* in, i64 cols, i64 r, uint8_t* out, X exponent) {
    bool sound = true;
    for (i64 k = 0; k < cols; k++) {
        const X x = read<X>(in + k * static_cast<i64>(sizeof(X)));
        sound &= (x & exponent) != exponent;
        std::memcpy(out + (16 * k + r) * static_cast<i64>(sizeof(X)), &x, sizeof x);
    }
    return sound;
}

bool pack_row(Type type, const uint8_t* in, i64 cols, i64 r, uint8_t* out) {
    if (type == Type::F32) return pack_floats<uint32_t>(in, cols, r, out, 0x7f800000);
    if (type == Type::F16) return pack_floats<uint16_t>(in, cols, r, out, 0x7c00);
    if (type == Type::BF16) return pack_floats<uint16_t>(in, cols, r, out, 0x7f80);
    const i64 step = block_columns(type), bytes = row_bytes(type, step), packed = packed_bytes(type);
    bool sound = true;
    for (i64 k = 0; k < cols; k += step, in += bytes) {
        uint8_t* block = out + k / kColumns * packed;
        sound &= step == kColumns ? pack_256(type, in, r, block) : pack_32(type, in, k % kColumns / 32, r, block);
    }
    return sound;
}

}  // namespace

i64 block_columns(Type type) { return is_float(type) ? 1 : by_256(type) ? 256 : 32; }

i64 row_bytes(Type type, i64 cols) {
    constexpr i64 bytes[kTypes] = {4, 2, 2, 34, 18, 20, 22, 24, 18, 84, 110, 144, 176, 210, 136};
    return cols / block_columns(type) * bytes[static_cast<int>(type)];
}

i64 pack_panel(Type type, const uint8_t* file, int rows, i64 cols, uint8_t* panel) {
    i64 sick = kSound;
    for (i64 r = rows - 1; r >= 0; r--)
        if (!pack_row(type, file + r * row_bytes(type, cols), cols, r, panel)) sick = r;
    return sick;
}

i64 pack(Pool& pool, const uint8_t* file, Matrix& w) {
    const i64 bytes = kRows * row_bytes(w.type, w.cols);
    std::atomic<i64> sick{w.rows};
    pool.run(w.panels, [&](i64 p, int) {
        const i64 found = pack_panel(w.type, file + p * bytes, w.rows_of(p), w.cols, w.data.bytes() + p * w.panel_bytes());
        for (i64 seen = sick, row = kRows * p + found; found != kSound && row < seen && !sick.compare_exchange_weak(seen, row);) {
        }
    });
    return sick == w.rows ? kSound : sick.load();
}

}  // namespace bise
