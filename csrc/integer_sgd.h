// One update of IntegerSGD (ops/integer_sgd.py): what the driver knows of it, and what an ISA file provides.
#pragma once

#include "integer_scalars.h"

namespace sb {

// v 2^left / 2^right, half to even, for |v| < 2^50: beyond a right shift of 52 all is 0. keep: -1, or 0 for 0.
struct Align {
    int left = 0, right = 0;
    i64 keep = -1;
};

// Sums on their way to 16 bits, stochastic: 2^first is cut off, then 2^rest by `rest` random bits.
struct Cut {
    int first = 0, rest = 0;
};

// What has no part in an update is kept at 0 or left as it is, so that every loop is the same.
struct SgdStep {
    i32 w_e, g_e;              // the exponents of w and g
    Align g_in_d, w_in_d;      // d = g + decay w
    Align d_in_sum, m_in_sum;  // sum = d + factor momentum -> v
    Align d_in_u, v_in_u;      // u = nesterov ? d + factor v : v
    Align w_in_new, u_in_new;  // new = w - rate u
    i32 factor, v_factor;
    Cut to_v, to_w;
    FloatScale new_scale{0};
};

// Of n elements; w, g: floats, m, v: the momentum before and after, r: random numbers.
struct IntegerSgdKernels {
    // max(best, |sum|)
    i64 (*sums)(const SgdStep& s, const float* w, const float* g, const i16* m, i64 n, i64 best);
    // v from its sums; max(best, |new|)
    i64 (*momentum)(
        const SgdStep& s, const float* w, const float* g, const i16* m, const u16* r, i64 n, i64 best, i16* v);
    // w from its sums
    void (*weights)(const SgdStep& s, const float* g, const i16* v, const u16* r, i64 n, float* w);
};
inline constexpr const char* kIntegerSgdOps[] = {"int_sgd"};

constexpr int kCodeBits = 16;
constexpr i32 kCodeTop = (1 << (kCodeBits - 1)) - 1;

}  // namespace sb
