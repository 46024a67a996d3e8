// sb_absmax_codes and sb_shift_codes: a tensor to codes by a range of its own (ops/codes.py), in one call.
#include <algorithm>
#include <vector>

#include "exports.h"
#include "numerics.h"

// x: n dense floats (half: bfloat16) -> codes in the same memory order, and their scale.
//   stream, order   as sb_quantize takes them
SB_EXPORT const char* sb_absmax_codes(
    const void* x, int half, sb::i64 n, float clip, const sb::i64* stream, sb::i64 batch, sb::i64 channels,
    sb::i64 pixels, int low, int high, void* codes, float* scale, int threads) {
    using namespace sb;
    float r = 0.0f;
    if (n) sb_amax(x, half, 1, 1, n, &r, threads);
    r = clipped(r, clip);
    *scale = r / static_cast<float>(high);
    return sb_quantize(
        x, half, n, &r, 1, n, nullptr, 1, 1, stream, batch, channels, pixels, low, high, codes, threads);
}

// The same with an exponent for each of `groups` indices of an axis, in runs of `inner`: shift, at most `top`.
SB_EXPORT const char* sb_shift_codes(
    const void* x, int half, sb::i64 n, sb::i64 groups, sb::i64 inner, int top, float clip, const sb::i64* stream,
    sb::i64 batch, sb::i64 channels, sb::i64 pixels, int low, int high, void* codes, float* scale, sb::u8* shift,
    int threads) {
    using namespace sb;
    std::vector<float> ranges(static_cast<size_t>(groups), 0.0f);
    if (n) sb_amax(x, half, n / (groups * inner), groups, inner, ranges.data(), threads);
    float r;
    sb_shift_exponents(ranges.data(), groups, top, 0, &r, shift, 1);
    r = clipped(r, clip);
    *scale = r / static_cast<float>(high);
    return sb_quantize(
        x, half, n, &r, 1, n, shift, groups, inner, stream, batch, channels, pixels, low, high, codes, threads);
}
