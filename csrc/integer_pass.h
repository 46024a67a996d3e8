// The passes of the integer-only mode over 32-bit sums (ops/integers.py): what an ISA file provides.
#pragma once

#include "subbyte.h"

namespace sb {

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
};

}  // namespace sb
