// The way back of a product, dx = dy W, wants W the other way round: its rows become the columns that are summed over. They are
// decoded 32 at a time, and every column of those 32 is rounded to one block of Q8_0, which is one lane of a panel.
#include "isa.h"
#include "pack.h"
#include "simd.h"

namespace bise {
namespace {

constexpr i64 kDepth = 32;  // rows that share a scale

// 32 rows of 16 columns, `stride` floats apart -> scale block s of 8 in one packed block: d[s][16], and 8 words of 4 rows
BISE_INLINE void lane_blocks(const float* x, i64 stride, i64 s, uint8_t* block) {
    F high = zero(), low = zero();
    for (i64 r = 0; r < kDepth; r++) high = max(high, load(x + r * stride)), low = min(low, load(x + r * stride));
    auto* scale = reinterpret_cast<uint16_t*>(block + 2 * kRows * s);
    store_f16(scale, mul(max(high, sub(zero(), low)), set1(1.0f / 127.0f)));
    const F d = load_f16(scale), inverse = where_above(d, zero(), div(set1(1.0f), d), zero());
    const F most = set1(127.0f), least = set1(-127.0f);  // a scale below 2^-14 is coarse: it may be too small
    for (i64 j = 0; j < kDepth / 4; j++) {
        I word = zero_i();
        unroll<4>([&](auto i) BISE_LAMBDA {
            const F q = max(least, min(most, mul(load(x + (4 * j + i) * stride), inverse)));
            word = or_i(word, shl<8 * i>(and_i(round(q), set1_i(0xff))));
        });
        store_i(block + 2 * kRows * 8 + 64 * (8 * s + j), word);
    }
}

}  // namespace

namespace BISE_ISA {

void turn(const Matrix& w, i64 c, i64 n, uint8_t* panels, i64 panel_bytes) {
    const i64 row = row_bytes(w.type, w.cols);
    const uint8_t* from = w.data.bytes() + row_bytes(w.type, c);
    alignas(64) float x[kDepth * kColumns];
    for (i64 r = 0; r < (w.rows + kColumns - 1) / kColumns * kColumns; r += kDepth) {
        for (i64 i = 0; i < kDepth; i++) {
            if (r + i < w.rows)
                dequantise(w.type, from + (r + i) * row, n, x + i * n);
            else
                std::memset(x + i * n, 0, sizeof(float) * static_cast<size_t>(n));
        }
        uint8_t* block = panels + r / kColumns * packed_bytes(Type::Q8_0);
        for (i64 p = 0; p < n / kRows; p++) lane_blocks(x + kRows * p, n, r % kColumns / kDepth, block + p * panel_bytes);
    }
}

}  // namespace BISE_ISA
}  // namespace bise
