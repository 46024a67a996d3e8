// Codes to dense bits and back: what an ISA file provides. 8 codes of b bits are b bytes, whatever b is.
#pragma once

#include "subbyte.h"

namespace sb {

struct PackKernels {
    // groups of 8 codes -> groups * bits bytes; code i of a group lies at bits b i .. b i + b - 1, little-endian.
    void (*pack)(const u8* codes, i64 groups, int bits, u8* packed);
    void (*unpack)(const u8* packed, i64 groups, int bits, bool is_signed, u8* codes);
};

// A word with v in each byte.
constexpr u64 in_each_byte(u64 v) { return v * 0x0101010101010101ull; }
constexpr u64 low_bits(int bits) { return (u64{1} << bits) - 1; }

}  // namespace sb
