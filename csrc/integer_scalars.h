// The scalar functions of the package `integer`: shifts that round, and floats taken apart into mantissa and exponent.
// NORMATIVE text: integer/shifts.py, integer/floats.py. Exponents are i64 here: no sum of some of them overflows.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace sb {

constexpr int kMantissa = 24, kBias = 150, kNotFinite = 1 << 20;

// v >> n for v >= -2^62, n <= 62: no vector of 64-bit integers shifts right with its sign before AVX-512
SB_INLINE i64 floor_shift(i64 v, int n) {
    constexpr u64 high = u64{1} << 62;
    return static_cast<i64>((static_cast<u64>(v) + high) >> n) - static_cast<i64>(high >> n);
}

// right_nearest, |v| < 2^61, n <= 62
SB_INLINE i64 nearest(i64 v, int n) {
    const i64 below = n ? (i64{1} << (n - 1)) - 1 : 0, odd = n ? 1 : 0;
    return floor_shift(v + below + (floor_shift(v, n) & odd), n);
}

// shift_by: v / 2^n
struct Shift {
    int left, right;
    i64 limit;

    explicit Shift(i64 n = 0)
        : left(static_cast<int>(std::clamp<i64>(-n, 0, 61))), right(static_cast<int>(std::clamp<i64>(n, 0, 62))),
          limit((i64{1} << 61) >> left) {}
    i64 operator()(i64 v) const { return nearest(std::clamp(v, -limit, limit) * (i64{1} << left), right); }
};

// shift_to_fit and shift_to_bits: how many of top, 2 top, 4 top .. below 2^63 are smaller than largest; top >= 1
inline int shift_below(i64 largest, i64 top) {
    const int steps = __builtin_clzll(static_cast<u64>(top)) - 1;
    int n = 0;
    while (n < steps && largest > top << n) ++n;
    return n;
}

// The bits of a float32, and what they say: x = mantissa 2^exponent.
SB_INLINE u32 bits_of(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
SB_INLINE i32 mantissa_of(u32 bits) {
    const i32 fraction = bits & 0x7FFFFF, size = (bits >> 23 & 0xFF) > 0 ? fraction | 1 << 23 : fraction;
    return static_cast<i32>(bits) < 0 ? -size : size;
}
SB_INLINE i32 exponent_of(u32 bits) {
    const i32 raw = bits >> 23 & 0xFF;
    return raw == 0xFF ? kNotFinite : (raw > 1 ? raw : 1) - kBias;
}

// from_float of one element, with the tensor's exponent
SB_INLINE i32 code_of(float x, i32 top) {
    const u32 bits = bits_of(x);
    const i32 m = mantissa_of(bits), far = top - exponent_of(bits), n = far < 30 ? far : 30, rounds = n > 0;
    return (m + ((1 << n) >> 1) - rounds + ((m >> n) & rounds)) >> n;
}

// The exponent of what to_float makes.
struct FloatScale {
    i32 e;
    bool lost;

    explicit FloatScale(i64 exponent)
        : e(static_cast<i32>(std::clamp<i64>(exponent, -(1 << 10), 1 << 10))), lost(exponent > kNotFinite >> 1) {}
};

// to_float, |code| <= 2^24
SB_INLINE float float_of(i32 code, const FloatScale& scale) {
    const u32 bits = bits_of(static_cast<float>(code)), sign = bits & 0x80000000u;
    const i32 raw = static_cast<i32>(bits >> 23 & 0xFF) + scale.e;
    u32 moved = sign | static_cast<u32>(raw) << 23 | (bits & 0x7FFFFF);
    moved = raw >= 0xFF ? sign | 0xFFu << 23 : moved;
    moved = bits == 0 || raw <= 0 ? sign : moved;
    moved = scale.lost ? 0x7FC00000u : moved;
    float x;
    __builtin_memcpy(&x, &moved, sizeof x);
    return x;
}

// An integer of fewer bits: v 2^-drop, half to even, with the smallest drop >= 0 for which |v| < 2^bits.
struct Fewer {
    i64 v;
    int drop = 0;

    Fewer(i64 value, int bits) {
        const i64 size = value < 0 ? -value : value;
        while (drop < 62 - bits && size >> drop >= i64{1} << bits) ++drop;
        v = nearest(value, drop);
    }
};

// v / n rounded half up
inline i64 divide(i64 v, i64 n) {
    const i64 raised = v + (n >> 1), q = raised / n;
    return q - (raised % n < 0);
}

constexpr i64 kScalarBlock = 1 << 12;  // elements in a task
constexpr i64 kScalarGrain = 1 << 13;  // elements that are worth a second thread

// The largest that block(begin, length, the best so far) makes of n elements, `least` or more.
template <class Block>
i64 largest_of(int threads, i64 n, i64 least, const Block& block) {
    const int workers = useful_threads(threads, n, kScalarGrain);
    std::vector<i64> found(static_cast<size_t>(workers), least);
    parallel(workers, ceil_div(n, kScalarBlock), [&](i64 task, int worker) {
        i64& best = found[static_cast<size_t>(worker)];
        best = block(task * kScalarBlock, std::min(kScalarBlock, n - task * kScalarBlock), best);
    });
    return *std::max_element(found.begin(), found.end());
}

// block(begin, length) for n elements
template <class Block>
void for_blocks(int threads, i64 n, const Block& block) {
    parallel(useful_threads(threads, n, kScalarGrain), ceil_div(n, kScalarBlock), [&](i64 task, int) {
        block(task * kScalarBlock, std::min(kScalarBlock, n - task * kScalarBlock));
    });
}

}  // namespace sb
