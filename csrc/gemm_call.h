// What sb_gemm is asked for: one product of matrices, or a batch of them.
#pragma once

#include "gemm_plan.h"

namespace sb {

constexpr int kMaxLeading = 8;

// All 64-bit, so that Python fills it as one array; pointers are addresses, 0 for none. See _cpu_products.py.
struct GemmCall {
    struct Operand {
        i64 data, outer, inner, shift, bits, is_signed, max_shift;  // strides in codes
        Format format() const { return {bits, is_signed}; }
        const u8* exponents() const { return reinterpret_cast<const u8*>(shift); }
    } a, b;
    i64 b_packed;  // are b's codes a string of bits?
    i64 m, n, k, wide;
    i64 out, is_float, half;  // int32, or int64 when wide, unless float (half: bfloat16)
    i64 a_scale, a_scale_step, b_scale, b_scale_step, bias;
    i64 leading, size[kMaxLeading], step[kMaxLeading][4];  // of a, b, a_scale, b_scale in elements
};

}  // namespace sb
