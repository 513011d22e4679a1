// 16 rows of a matrix turned so that lane = row, and back.
#pragma once
#include "simd.h"

namespace bise {
namespace {

// 16 columns of `rows` rows, the first value at x; missing rows repeat the last
BISE_INLINE void load_turned(const float* x, i64 stride, int rows, F* columns) {
    unroll<16>([&](auto j) BISE_LAMBDA {
        columns[j] = load(x + (j < rows ? j : rows - 1) * stride);
        if constexpr (j % 4 == 3) transpose_four(columns + j - 3);
    });
    transpose_fours(columns);
}

BISE_INLINE void store_turned(const F* columns, int rows, float* y, i64 stride) {
    F r[16];
    unroll<16>([&](auto j) BISE_LAMBDA {
        r[j] = columns[j];
        if constexpr (j % 4 == 3) transpose_four(r + j - 3);
    });
    transpose_fours(r);
    for (int j = 0; j < rows; j++) store(y + j * stride, r[j]);
}

// four columns of whole numbers, of which the low bytes are wanted: in memory one after the other
BISE_INLINE I four_bytes(const F* columns) {
    const I low = set1_i(255);
    const I a = and_i(round(columns[0]), low), b = shl<8>(and_i(round(columns[1]), low));
    const I c = shl<16>(and_i(round(columns[2]), low)), d = shl<24>(round(columns[3]));
    return or_i(or_i(a, b), or_i(c, d));
}

// n columns of such numbers, at most 64, to 64 bytes of each row; what is beyond n there is undefined
BISE_INLINE void bytes_turned(const F* columns, int n, int8_t* bytes, i64 stride) {
    F words[16] = {};
    for (int j = 0; j < n / 4; j++) {
        const I word = four_bytes(columns + 4 * j);
        std::memcpy(&words[j], &word, sizeof word);
    }
    store_turned(words, 16, reinterpret_cast<float*>(bytes), stride / 4);
}

}  // namespace
}  // namespace bise
