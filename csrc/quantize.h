// Floats to codes by the rules of numerics.py: what an ISA file provides.
#pragma once

#include "broadcast.h"
#include "subbyte.h"

namespace sb {

constexpr int kRandomSlack = 4 * kLanes;  // u16 that random_run may write past the end

struct QuantizeKernels {
    // numerics.random_bits16 for elements 4 first .. 4 (first + calls): four of each call of Threefry.
    void (*random_run)(u64 stream, u64 first, i64 calls, u16* r);
    // The same of elements first + c stride + j, for channels c and pixels j, to r[j channels + c]: NHWC.
    void (*random_pixels)(u64 stream, u64 first, u64 stride, i64 channels, i64 pixels, u16* r);
    // codes = to_fixed(x * inv) rounded to 2^16: half to even, or stochastic with the numbers r.
    void (*nearest)(Floats x, Lane<float> inv, float low, float high, i64 n, i8* codes);
    void (*stochastic)(Floats x, Lane<float> inv, float low, float high, const u16* r, i64 n, i8* codes);
    // The latter with the numbers of elements 4 first and on.
    void (*drawn)(
        Floats x, Lane<float> inv, float low, float high, u64 stream, u64 first, i64 n, i8* codes);
};
// The ops whose passes these are.
inline constexpr const char* kQuantizeOps[] = {"quantize_nearest", "quantize_sr"};

}  // namespace sb
