// A 64-bit checksum against damage: bits that flipped, pages that were lost. It is no defence against somebody who means it.
#pragma once
#include "kernels.h"
#include "pool.h"

namespace bise {

// The same for the same bytes on every machine and with any number of threads.
uint64_t checksum(Pool& pool, const uint8_t* data, i64 bytes);

}  // namespace bise
