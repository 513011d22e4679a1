// Columns of a matrix rounded one after the other, each where it makes up best for the errors of the others: the inner loop of
// bise/quantize/compensate.py. Lane = row.
#include "in_turn.h"

#include "isa.h"
#include "round_search.h"
#include "turned.h"

namespace bise {
namespace {

// One span of 16 rows.
struct Tile {
    F w[kColumns], zero[kColumns], step[kColumns], pull[kColumns], error[kColumns], level[kColumns], moved[kColumns];
};

template <class Grid>
__attribute__((noinline)) void round_columns(const Columns& c, Tile& t) {
    for (i64 k = 0; k < c.n; k++) t.moved[k] = zero();
    for (i64 k = 0; k < c.n; k++) {
        const float* feedback = c.feedback + (c.at + k) * c.cols + c.at;
        F sum[4] = {t.pull[k], zero(), zero(), zero()};  // (what is beyond k has not moved yet)
        for (i64 j = 0; j < k; j += 4)
            unroll<4>([&](auto i) BISE_LAMBDA { sum[i] = fma(set1(feedback[j + i]), t.moved[j + i], sum[i]); });
        const F pull = add(add(sum[0], sum[1]), add(sum[2], sum[3])), old = t.error[k];
        const F best = fma(pull, set1(1 / feedback[k]), sub(t.w[k], old));
        t.level[k] = Grid::snap(mul(sub(best, t.zero[k]), inverse(t.step[k])));
        t.error[k] = sub(t.w[k], fma(t.step[k], t.level[k], t.zero[k]));
        t.moved[k] = sub(t.error[k], old);
    }
}

void round_columns(const Columns& c, Tile& t) {
    switch (c.type) {
        case Type::Q8_0:
            return round_columns<Linear<-128, 127>>(c, t);
        case Type::Q6_K:
            return round_columns<Linear<-32, 31>>(c, t);
        case Type::Q5_0:
            return round_columns<Linear<-16, 15>>(c, t);
        case Type::Q4_0:
            return round_columns<Linear<-8, 7>>(c, t);
        case Type::Q3_K:
            return round_columns<Linear<-4, 3>>(c, t);
        case Type::Q5_1:
        case Type::Q5_K:
            return round_columns<Linear<0, 31>>(c, t);
        case Type::Q4_1:
        case Type::Q4_K:
            return round_columns<Linear<0, 15>>(c, t);
        case Type::Q2_K:
            return round_columns<Linear<0, 3>>(c, t);
        default:
            return round_columns<Table>(c, t);
    }
}

void list(const float* moved, i64 n, Moves& moves) {
    int count = 0;
    for (i64 k = 0; k < n; k++) {
        moves.column[count] = static_cast<uint8_t>(k), moves.by[count] = moved[k];
        count += moved[k] != 0;
    }
    moves.count = count;
}

constexpr int kWide = 128;  // columns that all moves of a row are added to at once

}  // namespace

namespace BISE_ISA {

void in_turn(const Columns& c, i64 row, int rows, Moves* moves) {
    Tile t;
    const i64 first = row * c.cols + c.at;
    for (i64 k = 0; k < c.n; k += 16) {
        const auto turned = [&](const float* from, F* to) { load_turned(from + first + k, c.cols, rows, to + k); };
        turned(c.w, t.w), turned(c.zero, t.zero), turned(c.step, t.step), turned(c.pull, t.pull), turned(c.error, t.error);
    }
    round_columns(c, t);
    alignas(64) float moved[kRows][kColumns];
    alignas(64) int8_t levels[kRows][64];
    for (i64 k = 0; k < c.n; k += 16) {
        store_turned(t.error + k, rows, c.error + first + k, c.cols);
        store_turned(t.moved + k, rows, moved[0] + k, kColumns);
    }
    for (i64 k = 0; k < c.n; k += 64) {
        const i64 n = c.n - k < 64 ? c.n - k : 64;
        bytes_turned(t.level + k, static_cast<int>(n), levels[0], 64);
        for (int r = 0; r < rows; r++) std::memcpy(c.level + first + r * c.cols + k, levels[r], static_cast<size_t>(n));
    }
    for (int r = 0; r < rows && moves; r++) list(moved[r], c.n, moves[r]);
}

void spread(const Columns& c, const Moves* moves, i64 row, i64 rows, float* pull) {
    alignas(64) float feedback[kColumns][kWide];
    for (i64 k = 0; k < c.cols; k += kWide) {
        const i64 wide = c.cols - k < kWide ? c.cols - k : kWide;
        for (i64 j = 0; j < c.n; j++)
            std::memcpy(feedback[j], c.feedback + (c.at + j) * c.cols + k, sizeof(float) * static_cast<size_t>(wide));
        for (i64 r = row; r < row + rows; r++)
            for (i64 i = 0; i < wide; i += 32) {
                float* y = pull + r * c.cols + k + i;
                F a = load(y), b = load(y + 16);
                for (int m = 0; m < moves[r].count; m++) {
                    const F by = set1(moves[r].by[m]);
                    const float* f = feedback[moves[r].column[m]] + i;
                    a = fma(by, load(f), a), b = fma(by, load(f + 16), b);
                }
                store(y, a), store(y + 16, b);
            }
    }
}

}  // namespace BISE_ISA
}  // namespace bise
