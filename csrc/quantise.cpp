// Activations to 8-bit blocks. Symmetric: d = max|x| / 127, q = round(x * 127 / max|x|), ties to even, so |q| <= 127.
// Each token stands alone. A block with a NaN or an infinity gets d = NaN and zeros: the sickness reaches the output.
// Gradients are rounded up or down by chance instead, so that on average nothing is lost: to the nearest, what is small in its
// block would be nothing in every step (Jetfire, Xi et al. 2024, section 5). Chance is the number's own last bits: the same
// gradient is rounded alike in any company, and in a run that is taken up again.

#include "isa.h"
#include "simd.h"

namespace bise {
namespace {

// from the low 24 bits of every number, evenly in (-0.5, 0.5)
BISE_INLINE F by_chance(F x) {
    const I b = bits(x), mixed = and_i(xor_i(xor_i(b, shr<8>(b)), shr<16>(b)), set1_i(0xff));
    return mul(add(to_float(mixed), set1(-127.5f)), set1(1.0f / 256.0f));
}

// n floats, a multiple of 16, to bytes with one scale, which is returned
template <bool chance>
BISE_INLINE float quantise_group(const float* x, int n, int8_t* q) {
    const I magnitude = set1_i(0x7fffffff);
    I top = zero_i();
    for (int i = 0; i < n; i += 16) top = max_i(top, and_i(bits(load(x + i)), magnitude));
    const int32_t top_bits = max_of(top);
    float amax;
    std::memcpy(&amax, &top_bits, 4);
    if (!(amax > 1e-30f) || !__builtin_isfinite(amax)) {  // nothing there, or too small for 127 / amax
        std::memset(q, 0, static_cast<size_t>(n));
        return __builtin_isfinite(amax) ? 0.0f : __builtin_nanf("");
    }
    const F inverse = set1(127.0f / amax);
    for (int i = 0; i < n; i += 16) {
        const F y = mul(load(x + i), inverse);
        store_bytes(q + i, round(chance ? add(y, by_chance(load(x + i))) : y));
    }
    return amax / 127.0f;
}

// 256 bytes -> sums of 16
BISE_INLINE void sums_of_16(const int8_t* q, int32_t* s) {
    alignas(64) int32_t fours[64];
    for (int i = 0; i < 4; i++) store_i(fours + 16 * i, sums4(q + 64 * i));
    for (int i = 0; i < 16; i++) s[i] = fours[4 * i] + fours[4 * i + 1] + fours[4 * i + 2] + fours[4 * i + 3];
}

int32_t pair(int32_t low, int32_t high) { return static_cast<int32_t>((static_cast<uint32_t>(high) << 16) | (low & 0xffff)); }

void finish(Act256& a) {
    int32_t s[16], wide[8];
    sums_of_16(a.q, s);
    for (int i = 0; i < 16; i++) a.offset[i] = -32 * s[i];
    for (int i = 0; i < 8; i++) wide[i] = s[2 * i] + s[2 * i + 1];
    for (int i = 0; i < 8; i++) a.pairs[i] = pair(s[i / 2 * 4 + i % 2], s[i / 2 * 4 + i % 2 + 2]);
    for (int i = 0; i < 4; i++) a.minima[i] = pair(wide[i / 2 * 4 + i % 2], wide[i / 2 * 4 + i % 2 + 2]);
}

// calls f(256 floats, block) for every block of one row; the last one is padded with zeros
template <class Fn>
void each_block(const float* x, i64 cols, Fn f) {
    i64 b = 0;
    for (; (b + 1) * kColumns <= cols; b++) f(x + b * kColumns, b);
    if (b * kColumns == cols) return;
    float tail[kColumns] = {};
    std::memcpy(tail, x + b * kColumns, sizeof(float) * static_cast<size_t>(cols - b * kColumns));
    f(tail, b);
}

template <bool chance>
void by_32(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act32* out) {
    for (i64 t = t0; t < t1; t++) {
        each_block(x + t * cols, cols, [&](const float* block, i64 b) {
            Act32& a = out[b * padded(T) + t];
            for (int s = 0; s < 8; s++) a.d[s] = quantise_group<chance>(block + 32 * s, 32, a.q + 32 * s);
            int32_t sums[16];
            sums_of_16(a.q, sums);
            for (int s = 0; s < 8; s++) {
                const int32_t sum = sums[2 * s] + sums[2 * s + 1];
                a.offset8[s] = -8 * sum, a.offset128[s] = -128 * sum;
                a.sum[s] = a.d[s] * static_cast<float>(sum);
            }
        });
    }
}

}  // namespace

namespace BISE_ISA {

void quantise256(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act256* out) {
    for (i64 t = t0; t < t1; t++) {
        each_block(x + t * cols, cols, [&](const float* block, i64 b) {
            Act256& a = out[b * padded(T) + t];
            a.d = quantise_group<false>(block, 256, a.q);
            finish(a);
        });
    }
}

void quantise32(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act32* out) { by_32<false>(x, cols, T, t0, t1, out); }
void quantise_gradients(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act32* out) { by_32<true>(x, cols, T, t0, t1, out); }

}  // namespace BISE_ISA
}  // namespace bise
