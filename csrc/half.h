// float16 and bfloat16 bits to float32, in portable scalar code. Always inlined: kernels of every instruction set use it.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace bise {

BISE_INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
BISE_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
BISE_INLINE float from_f16(uint16_t h) {
    const uint32_t sign = (h & 0x8000u) << 16;
    if ((h & 0x7c00) == 0x7c00) return float_of(sign | 0x7f800000 | ((h & 0x3ffu) << 13));
    return float_of(sign | bits_of(float_of((h & 0x7fffu) << 13) * 0x1p112f));  // exact, subnormals too
}
BISE_INLINE float from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }
BISE_INLINE bool sound_f16(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

template <class X>
BISE_INLINE X read(const uint8_t* p) {  // from any address
    X x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

}  // namespace bise
