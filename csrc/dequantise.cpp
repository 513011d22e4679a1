// One row of a file's blocks to float32: what `embed` reads. Scalar, for any machine; layouts in pack.cpp.
#include "half.h"
#include "pack.h"

namespace bise {
namespace {

void q8_0(const uint8_t* p, float* y) {
    const float d = from_f16(read<uint16_t>(p));
    for (int i = 0; i < 32; i++) y[i] = d * static_cast<float>(static_cast<int8_t>(p[2 + i]));
}

void q4_0(const uint8_t* p, float* y) {
    const float d = from_f16(read<uint16_t>(p));
    for (int i = 0; i < 16; i++) {
        y[i] = d * static_cast<float>((p[2 + i] & 15) - 8);
        y[16 + i] = d * static_cast<float>((p[2 + i] >> 4) - 8);
    }
}

// the 6-bit scale and minimum of group s (0..7) out of 12 bytes
void scale6(const uint8_t* p, int s, int& scale, int& minimum) {
    if (s < 4) {
        scale = p[s] & 63, minimum = p[s + 4] & 63;
    } else {
        scale = (p[s + 4] & 15) | (p[s - 4] >> 6 << 4), minimum = (p[s + 4] >> 4) | (p[s] >> 6 << 4);
    }
}

void q45_k(const uint8_t* p, const uint8_t* high, const uint8_t* low, float* y) {
    const float d = from_f16(read<uint16_t>(p)), dmin = from_f16(read<uint16_t>(p + 2));
    for (int s = 0; s < 8; s++) {
        int scale, minimum;
        scale6(p + 4, s, scale, minimum);
        const float a = d * static_cast<float>(scale), b = dmin * static_cast<float>(minimum);
        for (int i = 0; i < 32; i++) {
            int q = (low[s / 2 * 32 + i] >> (s % 2 * 4)) & 15;
            if (high) q |= ((high[i] >> s) & 1) << 4;
            y[32 * s + i] = a * static_cast<float>(q) - b;
        }
    }
}

void q6_k(const uint8_t* p, float* y) {
    const float d = from_f16(read<uint16_t>(p + 208));
    for (int k = 0; k < 256; k++) {
        const int half = k / 128, quarter = k % 128 / 32, i = k % 32;
        const int low = (p[64 * half + 32 * (quarter % 2) + i] >> (quarter / 2 * 4)) & 15;
        const int high = (p[128 + 32 * half + i] >> (2 * quarter)) & 3;
        y[k] = d * static_cast<float>(static_cast<int8_t>(p[192 + k / 16])) * static_cast<float>((low | high << 4) - 32);
    }
}

void block(Type type, const uint8_t* p, float* y) {
    switch (type) {
        case Type::F32:
            *y = read<float>(p);
            return;
        case Type::F16:
            *y = from_f16(read<uint16_t>(p));
            return;
        case Type::BF16:
            *y = from_bf16(read<uint16_t>(p));
            return;
        case Type::Q8_0:
            return q8_0(p, y);
        case Type::Q4_0:
            return q4_0(p, y);
        case Type::Q4_K:
            return q45_k(p, nullptr, p + 16, y);
        case Type::Q5_K:
            return q45_k(p, p + 16, p + 48, y);
        case Type::Q6_K:
            return q6_k(p, y);
        default:
            return;
    }
}

}  // namespace

bool dequantises(Type t) { return is_float(t) || t == Type::Q8_0 || t == Type::Q4_0 || (t >= Type::Q4_K && t <= Type::Q6_K); }

void dequantise_row(Type type, const uint8_t* row, i64 cols, float* out) {
    const i64 step = block_columns(type), bytes = row_bytes(type, step);
    for (i64 k = 0; k < cols; k += step, row += bytes) block(type, row, out + k);
}

}  // namespace bise
