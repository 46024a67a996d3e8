// Codes to dense bits and back: what an ISA file provides, and spans of codes for other passes.
// 8 codes of b bits are b bytes, whatever b is: 1 (a mask) to 8.
#pragma once

#include <vector>

#include "memory.h"

namespace sb {

struct PackKernels {
    // groups of 8 codes -> groups * bits bytes; code i of a group lies at bits b i .. b i + b - 1, little-endian.
    void (*pack)(const u8* codes, i64 groups, int bits, u8* packed);
    void (*unpack)(const u8* packed, i64 groups, int bits, bool is_signed, u8* codes);
};
// The ops whose passes these are.
inline constexpr const char* kPackOps[] = {"pack_codes", "unpack_codes", "pack_tokens", "unpack_tokens"};

constexpr i64 packed_bytes(i64 n, int bits) { return ceil_div<i64>(n * bits, 8); }

// n codes -> packed_bytes(n, bits)
void pack_run(const PackKernels& kernel, const u8* codes, i64 n, int bits, u8* packed);
// the inverse: n codes
void unpack_run(const PackKernels& kernel, const u8* packed, i64 n, int bits, bool is_signed, u8* codes);

// Codes of a packed tensor a span at a time, as signed bytes; a mask's are 0 and -1.
class Unpacked {
public:
    // most: codes of the largest span
    Unpacked(const PackKernels& kernel, const u8* packed, int bits, i64 most)
        : kernel_(kernel), packed_(packed), bits_(bits), codes_(bits < 8 ? static_cast<size_t>(most + 16) : 0) {}

    static std::vector<Unpacked> for_workers(
        int workers, const PackKernels& kernel, const u8* packed, int bits, i64 most) {
        return std::vector<Unpacked>(static_cast<size_t>(workers), Unpacked(kernel, packed, bits, most));
    }

    // codes begin .. end, valid until the next call
    const i8* span(i64 begin, i64 end) {
        const i64 first = begin / 8 * 8;
        const u8* from = packed_ + first / 8 * bits_;
        if (bits_ == 8) return reinterpret_cast<const i8*>(packed_ + begin);
        unpack_run(kernel_, from, end - first, bits_, true, codes_.data());
        return reinterpret_cast<const i8*>(codes_.data()) + (begin - first);
    }

private:
    PackKernels kernel_;
    const u8* packed_;
    int bits_;
    Lines<u8> codes_;
};

// A word with v in each byte.
constexpr u64 in_each_byte(u64 v) { return v * 0x0101010101010101ull; }
constexpr u64 low_bits(int bits) { return (u64{1} << bits) - 1; }

}  // namespace sb
