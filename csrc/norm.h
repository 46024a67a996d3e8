// Quantized normalization (ops/norm.py): integer sums of codes and two element-wise passes. What an ISA file provides.
#pragma once

#include "broadcast.h"
#include "subbyte.h"

namespace sb {

// k -> rint(k unit), clamped to +-high, with unit = 2^-drop: narrow_codes
struct Narrowing {
    float unit, high;
};
// k of `bits` bits in saved_bits; as it is where those are not fewer
inline Narrowing narrowing(int bits, int saved_bits) {
    if (saved_bits >= bits) return {1.0f, 127.0f};
    return {1.0f / static_cast<float>(1 << (bits - saved_bits)), static_cast<float>((1 << (saved_bits - 1)) - 1)};
}

// Passes over elements, in memory order. Each float operation rounds by itself, left to right.
struct NormPassKernels {
    // k = round(to_fixed(float(count q - total) * factor)),  y = float(k gamma) * scale + beta; k is kept narrowed
    void (*apply_signed)(
        const i8* q, Lane<i32> total, Lane<float> factor, Lane<float> gamma, Lane<float> scale, Lane<float> beta,
        i32 count, float high, Narrowing saved, i64 n, FloatsOut y, i8* k);
    void (*apply_unsigned)(
        const u8* q, Lane<i32> total, Lane<float> factor, Lane<float> gamma, Lane<float> scale, Lane<float> beta,
        i32 count, float high, Narrowing saved, i64 n, FloatsOut y, i8* k);
    // dx = a * (float(gamma g) - (u + v * (s - t))),  s = sign(k), or k for L2
    void (*grad_apply)(
        const i8* g, const i8* k, Lane<i32> gamma, Lane<float> a, Lane<float> u, Lane<float> v, Lane<float> t, bool l2,
        i64 n, FloatsOut dx);
};
// The ops whose passes these are.
inline constexpr const char* kNormPassOps[] = {"norm_apply", "norm_forward", "norm_backward", "norm_grad_apply"};

// Sums over the rows of a dense (rows, columns) matrix of codes, added to what stands in arrays of `columns` numbers.
// Codes are bytes; those of an unsigned format are moved by 128 into signed ones: code = byte ^ flip, flip 0 or 128.
constexpr i64 kMaxRows = 1 << 16;  // rows in one call: sums of products of two codes stay in 32 bits

struct NormSumKernels {
    // sum, least and greatest
    void (*moments)(const u8* q, u8 flip, i64 rows, i64 columns, i32* sum, i16* least, i16* greatest);
    // sum and count of the codes above a threshold: sum |n q - S| = 2 (n sum - S count), since all n q - S add to 0
    void (*above)(const u8* q, u8 flip, i64 rows, i64 columns, const i16* threshold, i32* sum, i32* count);
    // sum of squares
    void (*squares)(const u8* q, u8 flip, i64 rows, i64 columns, i64* sum);
    // sum g, sum g k, sum sign(k)
    void (*grad)(const i8* g, const i8* k, i64 rows, i64 columns, i32* sum_g, i64* sum_gk, i32* sum_sign);

    // Of one row of n codes, while it lies in the cache:
    void (*row_moments)(const u8* q, u8 flip, i64 n, i64* sum, i32* least, i32* greatest);
    void (*row_above)(const u8* q, u8 flip, i64 n, i32 threshold, i64* sum, i64* count);
    void (*row_squares)(const u8* q, u8 flip, i64 n, i64* sum);
    // sum gamma g, sum gamma g k, sum sign(k), to three numbers
    void (*grad_row)(const i8* g, const i8* k, const i16* gamma, i64 n, i64* sums);
};
// The ops whose passes these are.
inline constexpr const char* kNormSumOps[] = {"norm_stats", "norm_stats_uncentred", "norm_grad_stats"};
static_assert(kMaxRows * 128 * 128 <= INT32_MAX, "the bound of `grad` and `squares`");

// A value for each index of an axis: element i takes value (i / inner) % channels.
template <class T>
struct AlongAxis {
    const T* p;
    i64 channels, inner;
};

// norm_apply of ops/norm.py. k: bytes, or nullptr: then `saved` takes it in saved_bits, packed. Returns the kernel.
struct NormApply {
    const void* q;
    bool is_signed;
    i64 n;
    AlongAxis<i64> total;  // along factor's axis
    AlongAxis<float> factor;
    AlongAxis<i8> gamma;
    AlongAxis<float> scale, beta;
    i64 count;
    int bits;
    FloatsOut y;
    i8* k;
    u8* saved;
    int saved_bits;
};
const char* norm_apply(const NormApply& call, int threads);

}  // namespace sb
