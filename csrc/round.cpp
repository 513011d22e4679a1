// Strips of 16 rows to blocks: loading, weighting, and which search each type takes.
#include "round.h"

#include "isa.h"
#include "round_affine.h"
#include "round_search.h"
#include "simd.h"
#include "turned.h"

namespace bise {
namespace {

// One block of 16 rows, turned so that lane = row.
struct Strip {
    F x[256], w[256], q[256];
};

// columns [k, k + n) of `rows` rows -> per lane the bits of the largest magnitude, or `largest`; NaN lies above infinity
BISE_INLINE I load_strip(const float* x, i64 cols, int rows, i64 k, int n, I largest, Strip& s) {
    const I size = set1_i(0x7fffffff);
    for (int i = 0; i < n; i += 16) {
        load_turned(x + k + i, cols, rows, s.x + i);
        for (int j = i; j < i + 16; j++) largest = max_i(largest, and_i(bits(s.x[j]), size));
    }
    return largest;
}

// How much an error counts: the importance of its column.
BISE_INLINE void weigh(const float* importance, int n, Strip& s) {
    for (int i = 0; i < n; i++) s.w[i] = importance ? set1(importance[i]) : set1(1.0f);
}

constexpr Targets kTo128 = targets(120, 128, 1, -128, 127), kTo32 = targets(24, 34, 1, -32, 31),
                  kTo16 = targets(13, 17, 0.5f, -16, 15), kTo8 = targets(6, 9, 0.5f, -8, 7), kTo4 = targets(2.5f, 5, 0.5f, -4, 3),
                  kToTable = targets(98, 138, 8, -127, 113, false), kTo63 = targets(61.5f, 63.5f, 0.5f, 0, 63),
                  kTo15 = targets(14, 15.5f, 0.5f, 0, 15);
// where all errors count alike
constexpr Targets kFew16 = {{-16.5f, -16, -15.5f, 15}, 4}, kFew8 = {{-8.5f, -8, -7.5f, 7}, 4};

// one block of 32
template <class W>
__attribute__((noinline)) void search32(Type type, Strip& s, W w, bool few, Rounded& out) {
    switch (type) {
        case Type::Q8_0:
            return round_single<Linear<-128, 127>, 32>(s.x, w, kTo128, s.q, out);
        case Type::Q5_0:
            return round_single<Linear<-16, 15>, 32>(s.x, w, few ? kFew16 : kTo16, s.q, out);
        case Type::Q4_0:
            return round_single<Linear<-8, 7>, 32>(s.x, w, few ? kFew8 : kTo8, s.q, out);
        case Type::IQ4_NL:
            return round_single<Table, 32>(s.x, w, kToTable, s.q, out);
        case Type::Q5_1:
            return round_line<31, 32>(s.x, w, few ? kFewPlaces : kPlaces, s.q, out);
        case Type::Q4_1:
            return round_line<15, 32>(s.x, w, few ? kFewPlaces : kPlaces, s.q, out);
        default:
            return;
    }
}

__attribute__((noinline)) void search256(Type type, Strip& s, Rounded& out) {
    switch (type) {
        case Type::Q6_K:
            return round_nested<Linear<-32, 31>, Linear<-128, 127>, 16, 16>(s.x, Weighted{s.w}, kTo32, kTo128, s.q, out);
        case Type::Q3_K:
            return round_nested<Linear<-4, 3>, Linear<-32, 31>, 16, 16>(s.x, Weighted{s.w}, kTo4, kTo32, s.q, out);
        case Type::IQ4_XS:
            return round_nested<Table, Linear<-32, 31>, 8, 32>(s.x, Weighted{s.w}, kToTable, kTo32, s.q, out);
        case Type::Q5_K:
            return round_nested_lines<31, 63, 8, 32>(s.x, Weighted{s.w}, kTo63, s.q, out);
        case Type::Q4_K:
            return round_nested_lines<15, 63, 8, 32>(s.x, Weighted{s.w}, kTo63, s.q, out);
        case Type::Q2_K:
            return round_nested_lines<3, 15, 16, 16>(s.x, Weighted{s.w}, kTo15, s.q, out);
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
    I largest = zero_i();
    for (i64 k = 0; k < cols; k += n, out += bytes) {
        largest = load_strip(x, cols, rows, k, n, largest, s);
        if (importance || n == 256) weigh(importance ? importance + k : nullptr, n, s);
        if (n == 256)
            search256(type, s, chosen);
        else if (importance)
            search32(type, s, Weighted{s.w}, false, chosen);
        else
            search32(type, s, Alike{}, true, chosen);
        for (int i = 0; i < n; i += 64) bytes_turned(s.q + i, n < 64 ? n : 64, chosen.q[0] + i, 256);
        for (int r = 0; r < rows; r++) encode(type, chosen, r, out + r * row_bytes);
    }
    alignas(64) int32_t lanes[16];
    store_i(lanes, largest);
    for (int r = 0; r < rows; r++)
        if (lanes[r] > 0x477fe000) return r;  // 65504
    return -1;
}

}  // namespace BISE_ISA
}  // namespace bise
