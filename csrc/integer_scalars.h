// The scalar functions of the package `integer`: shifts that round, and floats taken apart into mantissa and exponent.
// NORMATIVE text: integer/shifts.py, integer/floats.py. Exponents are i64 here: no sum of some of them overflows.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace sb {

constexpr int kMantissa = 24, kBias = 150, kNotFinite = 1 << 20;

// right_nearest, n <= 62
inline i64 nearest(i64 v, int n) {
    if (n == 0) return v;
    return (v + ((i64{1} << (n - 1)) - 1) + ((v >> n) & 1)) >> n;
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

// A float32 as mantissa 2^e.
struct Float {
    i32 m, e;

    explicit Float(float x) {
        u32 bits;
        std::memcpy(&bits, &x, sizeof bits);
        const i32 raw = (bits >> 23) & 0xFF, fraction = bits & 0x7FFFFF;
        m = raw > 0 ? fraction | 1 << 23 : fraction;
        if (bits >> 31) m = -m;
        e = raw == 0xFF ? kNotFinite : std::max(raw, 1) - kBias;
    }
};

// from_float of one element, with the tensor's exponent
inline i64 code_of(float x, i32 top) {
    const Float f(x);
    return nearest(f.m, std::min(top - f.e, 30));
}

// to_float
inline float float_of(i64 code, i64 exponent) {
    float x = static_cast<float>(code);
    u32 bits;
    std::memcpy(&bits, &x, sizeof bits);
    const u32 sign = bits & 0x80000000u;
    const i64 raw = ((bits >> 23) & 0xFF) + std::clamp<i64>(exponent, -(1 << 10), 1 << 10);
    u32 moved = sign | static_cast<u32>(raw) << 23 | (bits & 0x7FFFFF);
    if (raw >= 0xFF) moved = sign | 0xFFu << 23;
    if (bits == 0 || raw <= 0) moved = sign;
    if (exponent > kNotFinite >> 1) moved = 0x7FC00000u;
    std::memcpy(&x, &moved, sizeof x);
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

// The largest of value(i) over n elements, `least` or more.
template <class Value>
i64 largest_of(int threads, i64 n, i64 least, const Value& value) {
    std::vector<i64> found(static_cast<size_t>(threads), least);
    parallel(threads, ceil_div(n, kScalarBlock), [&](i64 task, int worker) {
        i64 best = least;
        for (i64 i = task * kScalarBlock; i < std::min((task + 1) * kScalarBlock, n); ++i)
            best = std::max<i64>(best, value(i));
        found[static_cast<size_t>(worker)] = std::max(found[static_cast<size_t>(worker)], best);
    });
    return *std::max_element(found.begin(), found.end());
}

// each(i) for n elements
template <class Each>
void for_each(int threads, i64 n, const Each& each) {
    parallel(threads, ceil_div(n, kScalarBlock), [&](i64 task, int) {
        for (i64 i = task * kScalarBlock; i < std::min((task + 1) * kScalarBlock, n); ++i) each(i);
    });
}

}  // namespace sb
