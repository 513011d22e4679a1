// Strips of 16 rows to blocks: loading, weighting, and which search each type takes.
#include "round.h"

#include "isa.h"
#include "round_affine.h"
#include "round_search.h"
#include "simd.h"

namespace bise {
namespace {

// One block of 16 rows, turned so that lane = row.
struct Strip {
    F x[256], w[256];
};

// columns [k, k + n) of `rows` rows; missing ones repeat the last. -> per lane 0, unless a value is NaN or beyond float16
BISE_INLINE F load_strip(const float* x, i64 cols, int rows, i64 k, int n, Strip& s) {
    F sick = zero();
    for (int i = 0; i < n; i += 16) {
        F* block = s.x + i;
        unroll<16>([&](auto j) BISE_LAMBDA {
            block[j] = load(x + (j < rows ? j : rows - 1) * cols + k + i);
            if constexpr (j % 4 == 3) transpose_four(block + j - 3);
        });
        transpose_fours(block);
        for (int j = 0; j < 16; j++) {
            const F large = where_above(magnitude(block[j]), set1(65504.0f), set1(1.0f), zero());
            sick = add(sick, add(mul(block[j], zero()), large));
        }
    }
    return sick;
}

// How much an error counts: the importance of its column.
BISE_INLINE void weigh(const float* importance, int n, Strip& s) {
    if (!importance) {
        for (int i = 0; i < n; i++) s.w[i] = set1(1.0f);
        return;
    }
    for (int i = 0; i < n; i++) s.w[i] = set1(importance[i]);
}

constexpr Targets kTo128 = {120, 128, 1}, kTo32 = {24, 34, 1}, kTo16 = {13, 17, 0.5f}, kTo8 = {6, 9, 0.5f},
                  kTo4 = {2.5f, 5, 0.5f};
constexpr Targets kToTable = {98, 138, 8}, kTo63 = {61.5f, 63.5f, 0.5f}, kTo15 = {14, 15.5f, 0.5f};

// one block of 32
__attribute__((noinline)) void search32(Type type, const Strip& s, Rounded& out) {
    switch (type) {
        case Type::Q8_0:
            return round_single<Linear<-128, 127>, 32>(s.x, s.w, kTo128, out);
        case Type::Q5_0:
            return round_single<Linear<-16, 15>, 32>(s.x, s.w, kTo16, out);
        case Type::Q4_0:
            return round_single<Linear<-8, 7>, 32>(s.x, s.w, kTo8, out);
        case Type::IQ4_NL:
            return round_single<Table, 32>(s.x, s.w, kToTable, out);
        case Type::Q5_1:
            return round_line<31, 32>(s.x, s.w, out);
        case Type::Q4_1:
            return round_line<15, 32>(s.x, s.w, out);
        default:
            return;
    }
}

__attribute__((noinline)) void search256(Type type, const Strip& s, Rounded& out) {
    switch (type) {
        case Type::Q6_K:
            return round_nested<Linear<-32, 31>, Linear<-128, 127>, 16, 16>(s.x, s.w, kTo32, kTo128, out);
        case Type::Q3_K:
            return round_nested<Linear<-4, 3>, Linear<-32, 31>, 16, 16>(s.x, s.w, kTo4, kTo32, out);
        case Type::IQ4_XS:
            return round_nested<Table, Linear<-32, 31>, 8, 32>(s.x, s.w, kToTable, kTo32, out);
        case Type::Q5_K:
            return round_nested_lines<31, 63, 8, 32>(s.x, s.w, kTo63, out);
        case Type::Q4_K:
            return round_nested_lines<15, 63, 8, 32>(s.x, s.w, kTo63, out);
        case Type::Q2_K:
            return round_nested_lines<3, 15, 16, 16>(s.x, s.w, kTo15, out);
        default:
            return;
    }
}

}  // namespace

namespace BISE_ISA {

int round_rows(Type type, const float* x, i64 cols, int rows, const float* importance, uint8_t* out, i64 row_bytes) {
    Strip s;
    Rounded chosen;
    const int n = static_cast<int>(rounded_columns(type));
    const i64 bytes = row_bytes / (cols / n);
    F sick = zero();
    for (i64 k = 0; k < cols; k += n, out += bytes) {
        sick = add(sick, load_strip(x, cols, rows, k, n, s));
        weigh(importance ? importance + k : nullptr, n, s);
        (n == 32 ? search32 : search256)(type, s, chosen);
        for (int r = 0; r < rows; r++) encode(type, chosen, r, out + r * row_bytes);
    }
    float lanes[16];
    store(lanes, sick);
    for (int r = 0; r < rows; r++)
        if (lanes[r] != 0.0f) return r;
    return -1;
}

}  // namespace BISE_ISA
}  // namespace bise
