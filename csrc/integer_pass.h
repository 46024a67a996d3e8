// The passes of the integer-only mode over 32-bit sums (ops/integers.py), and its border to floats (int_from_float,
// int_to_float): what an ISA file provides.
#pragma once

#include "integer_scalars.h"

namespace sb {

constexpr i64 kPassTile = 1 << 10;   // elements for which bits are drawn at a time
constexpr i64 kPassBlock = 1 << 15;  // elements in a task
constexpr i64 kPassGrain = 1 << 15;  // elements that are worth a second thread

// token_shift of ops/integer_tokens.py: least = base - top, most = base. Codes go left by what lies above `least`.
struct TokenShift {
    i32 least, most;
};

// Runs of elements that share their operands. |x| <= 2^30 and shifts <= 30, so that rounding stays in 32 bits.
struct IntegerPassKernels {
    // max(best, max |x|)
    i32 (*largest)(const i32* x, i64 n, i32 best);
    // codes = clamp(x / 2^shift, low, high), half to even
    void (*nearest)(const i32* x, i64 n, int shift, i32 low, i32 high, i8* codes);
    // the same, stochastic by the numbers r
    void (*stochastic)(const i32* x, i64 n, int shift, const u16* r, i32 low, i32 high, i8* codes);
    // dx = ((g << fraction) - u - v sign(k)) a / 2^shift, half to even; the product has at most 62 bits
    void (*norm_grad)(
        const i8* g, const i8* k, i64 n, int fraction, i32 u, i32 v, i64 a, int shift, i32* dx);
    // sum = a 2^a_left / 2^a_right + b 2^b_left / 2^b_right, half to even
    void (*add)(
        const i32* a, int a_left, int a_right, const i32* b, int b_left, int b_right, i64 n, i32* sum);
    // sum = a 2^a_left / 2^a_right + value
    void (*add_value)(const i32* a, int a_left, int a_right, i32 value, i64 n, i32* sum);
    // y = max(x, 0), passes = x > 0
    void (*relu)(const i32* x, i64 n, i32* y, u8* passes);
    // h = passes ? g : 0
    void (*relu_grad)(const i32* g, const u8* passes, i64 n, i32* h);

    // best = max(best, |x|)
    void (*largest_each)(const i32* x, i64 n, i32* best);
    // needed = the smallest s >= 0 with largest <= high 2^s; high = 2^m - 1, m <= 8, 0 <= largest <= 2^30
    void (*shifts)(const i32* largest, i64 n, i32 high, u8* needed);
    // codes = clamp(x / 2^s, low, high) 2^(s - shift.least), s = shift_of(needed), half to even
    void (*nearest_each)(
        const i32* x, i64 n, const u8* needed, const TokenShift& shift, i32 low, i32 high, i8* codes);
    // the same, stochastic by the numbers r
    void (*stochastic_each)(
        const i32* x, i64 n, const u8* needed, const TokenShift& shift, const u16* r, i32 low, i32 high, i8* codes);
    // sum of (x - code 2^s)^2, code = clamp(x / 2^s, low, high), s = max(shift_of(needed) - drop, 0), |x| < 2^17
    i64 (*squared_error)(
        const i32* x, const u8* needed, i64 n, const TokenShift& shift, int drop, i32 low, i32 high);

    // max(best, the greatest exponent of a float in x)
    i32 (*exponent)(const float* x, i64 n, i32 best);
    // code_of
    void (*codes)(const float* x, i64 n, i32 top, i32* codes);
    // max(best, max |v|)
    i64 (*largest_wide)(const i64* v, i64 n, i64 best);
    // float_of, of v / 2^drop half to even
    void (*floats)(const i32* v, i64 n, int drop, const FloatScale& scale, float* y);
    void (*floats_wide)(const i64* v, i64 n, int drop, const FloatScale& scale, float* y);
};
inline constexpr const char* kIntegerPassOps[] = {"integer_pass"};

}  // namespace sb
