// Pieces of 256 KiB, shared out over the threads; in each, eight lanes of 64 bits walk eight words side by side, and a step is
//   lane = rotate((lane ^ word) * odd)
// Every part of a step can be undone, so a single word that changed always changes its lane, and with it the sum. Of changes in
// several words one in 2^64 goes unseen. The rotation brings high bits back to where the next product spreads them.
// Lengths are part of the sum; a piece's last words are padded with zeros.
#include "checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

namespace bise {
namespace {

constexpr i64 kPiece = 1 << 18;
constexpr i64 kAhead = 4096;                   // bytes fetched ahead: the processor's own prefetcher stops at each page
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio

inline uint64_t step(uint64_t lane, uint64_t word) { return std::rotl((lane ^ word) * kOdd, 29); }

inline uint64_t word(const uint8_t* p, int i) {
    uint64_t w;
    std::memcpy(&w, p + 8 * i, 8);
    return w;
}

uint64_t piece(const uint8_t* p, i64 bytes) {
    uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8;
    const auto eight = [&](const uint8_t* q) {
        a = step(a, word(q, 0)), b = step(b, word(q, 1)), c = step(c, word(q, 2)), d = step(d, word(q, 3));
        e = step(e, word(q, 4)), f = step(f, word(q, 5)), g = step(g, word(q, 6)), h = step(h, word(q, 7));
    };
    i64 at = 0;
    for (; at + 64 <= bytes; at += 64) {
        __builtin_prefetch(p + at + kAhead);
        eight(p + at);
    }
    if (at < bytes) {
        uint8_t rest[64] = {};
        std::memcpy(rest, p + at, static_cast<size_t>(bytes - at));
        eight(rest);
    }
    uint64_t sum = static_cast<uint64_t>(bytes);
    for (uint64_t lane : {a, b, c, d, e, f, g, h}) sum = step(sum, lane);
    return sum;
}

}  // namespace

uint64_t checksum(Pool& pool, const uint8_t* data, i64 bytes) {
    std::vector<uint64_t> sums(static_cast<size_t>((bytes + kPiece - 1) / kPiece));
    pool.run(static_cast<i64>(sums.size()),
             [&](i64 i, int) { sums[static_cast<size_t>(i)] = piece(data + i * kPiece, std::min(kPiece, bytes - i * kPiece)); });
    uint64_t total = static_cast<uint64_t>(bytes);
    for (uint64_t sum : sums) total = step(total, sum);
    return total;
}

}  // namespace bise
