// Layouts in the file (the GGUF specification, one row of blocks after the other):
//   Q8_0  f16 d; i8 q[32]                                             Q4_0  f16 d; u8 q[16] (low nibbles first half)
//   Q4_K  f16 d, dmin; u8 scales[12]; u8 q[128]                       Q5_K  f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 q[128]
//   Q6_K  u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d
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

bool pack_q4_k(const uint8_t* in, i64 r, uint8_t* out) {
    const bool sound = half(in, r, out) & half(in + 2, r, out + 32);
    words(in + 4, 3, r, out + 64);
    words(in + 16, 32, r, out + 256);
    return sound;
}
bool pack_q5_k(const uint8_t* in, i64 r, uint8_t* out) {
    const bool sound = half(in, r, out) & half(in + 2, r, out + 32);
    words(in + 4, 3, r, out + 64);
    words(in + 16, 8, r, out + 256);
    words(in + 48, 32, r, out + 768);
    return sound;
}
bool pack_q6_k(const uint8_t* in, i64 r, uint8_t* out) {
    const float d = from_f16(read<uint16_t>(in + 208));
    std::memcpy(out + 4 * r, &d, 4);
    words(in + 192, 4, r, out + 64);
    words(in, 32, r, out + 320);
    words(in + 128, 16, r, out + 2368);
    return sound_f16(read<uint16_t>(in + 208));
}
bool pack_q8_0(const uint8_t* in, i64 s, i64 r, uint8_t* out) {
    words(in + 2, 8, r, out + 256 + 512 * s);
    return half(in, r, out + 32 * s);
}
bool pack_q4_0(const uint8_t* in, i64 s, i64 r, uint8_t* out) {
    words(in + 2, 4, r, out + 256 + 256 * s);
    return half(in, r, out + 32 * s);
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
        const i64 s = k % kColumns / 32;
        switch (type) {
            case Type::Q8_0:
                sound &= pack_q8_0(in, s, r, block);
                break;
            case Type::Q4_0:
                sound &= pack_q4_0(in, s, r, block);
                break;
            case Type::Q4_K:
                sound &= pack_q4_k(in, r, block);
                break;
            case Type::Q5_K:
                sound &= pack_q5_k(in, r, block);
                break;
            default:
                sound &= pack_q6_k(in, r, block);
        }
    }
    return sound;
}

// pack_one(row, lane, panel) -> sound, for every row, panels shared out over the pool
template <class Fn>
i64 pack_panels(Pool& pool, Matrix& w, Fn pack_one) {
    std::atomic<i64> sick{w.rows};
    pool.run(w.panels, [&](i64 p, int) {
        for (i64 r = 0; r < kRows && kRows * p + r < w.rows; r++) {
            if (pack_one(kRows * p + r, r, w.data.bytes() + p * w.panel_bytes())) continue;
            i64 seen = sick;
            while (kRows * p + r < seen && !sick.compare_exchange_weak(seen, kRows * p + r)) {
            }
        }
    });
    return sick == w.rows ? kSound : sick.load();
}

}  // namespace

i64 block_columns(Type type) { return type <= Type::BF16 ? 1 : type <= Type::Q4_0 ? 32 : 256; }

i64 row_bytes(Type type, i64 cols) {
    constexpr i64 bytes[kTypes] = {4, 2, 2, 34, 18, 144, 176, 210};
    return cols / block_columns(type) * bytes[static_cast<int>(type)];
}

i64 pack(Pool& pool, const uint8_t* file, Matrix& w) {
    const i64 bytes = row_bytes(w.type, w.cols);
    return pack_panels(pool, w,
                       [&](i64 row, i64 r, uint8_t* panel) { return pack_row(w.type, file + row * bytes, w.cols, r, panel); });
}

i64 pack(Pool& pool, Other type, const uint8_t* file, Matrix& w) {
    const i64 bytes = row_bytes(type, w.cols), converted = row_bytes(w.type, w.cols);
    return pack_panels(pool, w, [&](i64 row, i64 r, uint8_t* panel) {
        const std::unique_ptr<uint8_t[]> line(new uint8_t[static_cast<size_t>(converted)]);
        convert_row(type, file + row * bytes, w.cols, line.get());
        return pack_row(w.type, line.get(), w.cols, r, panel);
    });
}

}  // namespace bise
