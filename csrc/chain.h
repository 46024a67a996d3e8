// The passes of a fused chain (ops/chain.py): what an ISA file provides.
//
// Each kernel takes a matrix of a tensor whose columns belong to channels (strips.h): operands and sums are arrays with
// one number for each column, and reach at least a vector past the last one.
#pragma once

#include <type_traits>

#include "norm.h"
#include "subbyte.h"

namespace sb {

struct NormOperands {
    const i32* total;
    const float* factor;
    const float *gamma, *scale, *beta;
    i32 count;
    float high;  // of k, in fixed point
    Narrowing saved;
};

struct GradOperands {
    const i32* gamma;
    const float *a, *offset[3];  // offset: u + v (s - t) for s = -1, 0, 1
};

struct GradSums {
    i32 *g, *sign;        // sum g, sum sign(k)
    i64* product;         // sum g k
    i16 *low[3], *high[3];  // extremes of g where k < 0, k = 0, k > 0
};

// Calls f with n, as a constant where it is one of the known numbers, so that a loop over it unrolls.
template <i64... known, class F>
inline void with_known(i64 n, const F& f) {
    const bool found = ((n == known && (f(std::integral_constant<i64, known>{}), true)) || ...);
    if (!found) f(n);
}

// The number of a token's channels: 8 are a block of weights, 16 the first stage of a small ResNet.
template <class F>
inline void with_channels(i64 channels, const F& f) { with_known<8, 16>(channels, f); }

// The steps that a token's codes may have: e is the largest exponent whose limit is not below its largest magnitude.
struct TokenSteps {
    int top;            // the last exponent
    float low, high;    // the least and the largest code, in fixed point
    i32 limit[8];       // bits of the range 2^-e, -1: no token may take it
    float inv[8];
};

// mask: a byte each, its lowest bit 1 (when read: all bits) where ReLU passes; nullptr: it passes everywhere.
// half: floats that are not written are rounded to bfloat16 all the same, as if they were.
// inv and top: a code is x inv, rounded to 2^16 and clamped to +-top (or to 0 .. top); r: its random bits, or nullptr.
struct ChainKernels {
    // z = y + other (of z's type), through ReLU if a mask is wanted; m: 16 numbers, the maxima of the bits of |z| of
    // each lane
    void (*norm_relu)(
        const i8* q, const NormOperands& v, i64 slot, Floats other, i64 rows, i64 columns, FloatsOut z, i8* k, u8* mask,
        i32* m);
    void (*norm_relu_codes)(
        const i8* q, const NormOperands& v, i64 slot, const float* inv, float top, bool half, i64 rows, i64 columns,
        i8* codes, i8* k, u8* mask);
    // m[c] = max of the bits of |h|, h = g where the mask passes and 0 elsewhere; h is of g's type or nullptr
    void (*relu_grad)(Floats g, const u8* mask, i64 rows, i64 columns, i32* m, FloatsOut h);
    void (*relu_grad_quantize)(
        Floats g, const u8* mask, const float* inv, float top, const u16* r, i64 rows, i64 columns, i8* codes);
    void (*norm_grad_sums)(const i8* g, const i8* k, i64 rows, i64 columns, const GradSums& sums, i64 slot);
    void (*norm_grad_codes)(
        const i8* g, const i8* k, const GradOperands& v, i64 slot, const float* inv, float top, bool half, const u16* r,
        i64 rows, i64 columns, i8* codes);
    void (*norm_grad_floats)(
        const i8* g, const i8* k, const GradOperands& v, i64 slot, i64 rows, i64 columns, FloatsOut dx);
    // codes of the rows of a matrix, each by the step of its own e, times 2^(top - e)
    void (*token_codes)(Floats x, i64 rows, i64 columns, const TokenSteps& steps, const u16* r, i8* codes);
    // x += h, the h of relu_grad; x is of g's type
    void (*relu_grad_add)(Floats g, const u8* mask, i64 n, FloatsOut x);
};
// The ops whose passes these are.
inline constexpr const char* kChainOps[] = {
    "norm_relu", "norm_relu_codes", "norm_relu_tokens", "relu_grad", "relu_grad_quantize", "norm_grad_sums",
    "chain_norm", "chain_norm_grad", "norm_grad_codes", "norm_grad_amax", "norm_grad_tokens", "quantize_tokens",
    "quantize_blocks"};

}  // namespace sb
