// The small ops of ops/integer_constants.py: a few integer operations on one number for each channel, and the border
// where floats become integers. NORMATIVE text: the package `integer`.
#include <cstdlib>

#include "cpu_features.h"
#include "integer_pass.h"

namespace sb {
namespace {

Op<IntegerPassKernels> op{"integer_pass"};

constexpr int kFactorBits = 14;      // L1_FACTOR_BITS
constexpr i64 kFactor = 20533;       // L1_FACTOR_FIXED
constexpr int kReciprocalBits = 16;  // RECIPROCAL_BITS
constexpr int kFinest = 6, kCoarsest = -2;
constexpr int kGradientFraction = 8;
constexpr int kInverseBits = 17, kLargestFactor = 30;
constexpr int kCodes = 256;

// ceil(log2 n), n >= 1
int log2_up(i64 n) { return n == 1 ? 0 : 64 - __builtin_clzll(static_cast<u64>(n - 1)); }

// blend, and the float that it becomes: (1 - w) old + w new 2^e, w = weight 2^-16
float blended(float old, i64 value, i64 e, i64 weight) {
    const Fewer fresh(value, kMantissa);
    const u32 bits = bits_of(old);
    const i64 old_e = exponent_of(bits), fresh_e = e + fresh.drop, common = std::max(old_e, fresh_e) - 18;
    const i64 kept = Shift(common - old_e)(mantissa_of(bits)) * ((1 << 16) - weight);
    const Fewer both(kept + Shift(common - fresh_e)(fresh.v) * weight, kMantissa);
    return float_of(static_cast<i32>(both.v), FloatScale(common - 16 + both.drop));
}

}  // namespace
}  // namespace sb

SB_EXPORT const char* sb_int_shift_to_fit(const sb::i64* largest, sb::i64 n, int top, sb::i32* shift, int) {
    for (sb::i64 i = 0; i < n; ++i) shift[i] = sb::shift_below(largest[i], top);
    return "int_shift_to_fit_portable";
}

// x -> codes of 24 bits times 2^*exponent
SB_EXPORT const char* sb_int_from_float(const float* x, sb::i64 n, sb::i32* codes, sb::i32* exponent, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const i64 top = largest_of(threads, n, 1 - kBias, [&](i64 i, i64 count, i64 best) {
        return i64{kernel.table->exponent(x + i, count, static_cast<i32>(best))};
    });
    *exponent = static_cast<i32>(top);
    for_blocks(threads, n, [&](i64 i, i64 count) { kernel.table->codes(x + i, count, *exponent, codes + i); });
    return kernel.name;
}

// v 2^*exponent -> floats, 24 bits below the largest; wide: v is 64 bits, not 32
SB_EXPORT const char* sb_int_to_float(
    const void* v, int wide, sb::i64 n, const sb::i32* exponent, float* y, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const auto convert = [&](const auto* from, const auto& largest, const auto& floats) {
        const i64 most = largest_of(threads, n, 0, [&](i64 i, i64 count, i64 best) {
            return i64{largest(from + i, count, static_cast<std::decay_t<decltype(*from)>>(best))};
        });
        const int drop = shift_below(most, (1 << kMantissa) - 1);
        const FloatScale scale(i64{*exponent} + drop);
        for_blocks(threads, n, [&](i64 i, i64 count) { floats(from + i, count, drop, scale, y + i); });
    };
    if (wide)
        convert(static_cast<const i64*>(v), kernel.table->largest_wide, kernel.table->floats_wide);
    else
        convert(static_cast<const i32*>(v), kernel.table->largest, kernel.table->floats);
    return kernel.name;
}

// The statistics of n codes in each channel -> k (channels, 256), and fraction, inverse, inverse_e of each.
SB_EXPORT const char* sb_int_batch_table(
    const sb::i64* total, const sb::i64* spread, const sb::i64* least, const sb::i64* greatest, sb::i64 channels,
    sb::i64 n, int is_signed, int bits, sb::i8* k, sb::i32* fraction, sb::i64* inverse, sb::i32* inverse_e, int) {
    using namespace sb;
    const int log2n = log2_up(n), scale = -(kReciprocalBits + log2n), first = is_signed ? -kCodes / 2 : 0;
    const i64 top = (1 << (bits - 1)) - 1, floor = std::max<i64>(n * n >> 7, 1);
    for (i64 c = 0; c < channels; ++c) {
        const i64 divisor = (kFactor * std::max(spread[c], floor)) >> log2n;
        const i64 reciprocal = (n << (kReciprocalBits + kFactorBits)) / divisor;
        const Fewer one(reciprocal * n, kInverseBits);
        inverse[c] = one.v, inverse_e[c] = scale + one.drop;
        const i64 largest = std::max(n * greatest[c] - total[c], total[c] - n * least[c]) * reciprocal;
        fraction[c] = std::clamp(-scale - shift_below(largest, top), kCoarsest, kFinest);
        const Shift to_code(-scale - fraction[c]);
        for (int i = 0; i < kCodes; ++i) {
            const i64 raw = (n * (first + i) - total[c]) * reciprocal;
            k[c * kCodes + i] = static_cast<i8>(std::clamp(to_code(raw), -top, top));
        }
    }
    return "int_batch_table_portable";
}

// y = gamma xhat + beta for every code of xhat, times 2^*e
SB_EXPORT const char* sb_int_affine_table(
    const sb::i8* k, const sb::i32* fraction, sb::i64 channels, const sb::i8* gamma, const sb::i32* gamma_e,
    const sb::i32* beta, const sb::i32* beta_e, sb::i32* y, sb::i32* e, int) {
    using namespace sb;
    *e = std::max(*gamma_e - kFinest, *beta_e + 1);
    const Shift product(i64{*e} - *gamma_e + kFinest), offset(i64{*e} - *beta_e);
    for (i64 c = 0; c < channels; ++c) {
        const i64 by = i64{gamma[c]} << (kFinest - fraction[c]), plus = offset(beta[c]);
        for (i64 i = c * kCodes; i < (c + 1) * kCodes; ++i) y[i] = static_cast<i32>(product(k[i] * by) + plus);
    }
    return "int_affine_table_portable";
}

// The sums are nullptr where the statistics are constants. u, v, a: one for each channel; shift, exponent: one.
SB_EXPORT const char* sb_int_norm_coefficients(
    const sb::i64* inverse, const sb::i32* inverse_e, const sb::i32* fraction, const sb::i8* gamma,
    const sb::i32* gamma_e, const sb::i32* g_e, const sb::i64* sum_g, const sb::i64* sum_gk, const sb::i64* sum_sign,
    sb::i64 channels, sb::i64 n, sb::i32* u, sb::i32* v, sb::i64* a, sb::i32* shift, sb::i32* exponent, int) {
    using namespace sb;
    i64 top = INT64_MIN, bound = 0;
    for (i64 c = 0; c < channels; ++c) top = std::max(top, i64{inverse_e[c]} + *gamma_e + g_e[c]);
    top += 25 - kLargestFactor;
    for (i64 c = 0; c < channels; ++c) {
        i64 minus = 0, slope = 0;
        if (sum_g) {
            slope = divide(kFactor * (sum_gk[c] << (kGradientFraction - fraction[c])), n << kFactorBits);
            minus = divide((sum_g[c] << kGradientFraction) - slope * sum_sign[c], n);
        }
        u[c] = static_cast<i32>(minus), v[c] = static_cast<i32>(slope);
        a[c] = Shift(top - (i64{inverse_e[c]} + *gamma_e + g_e[c]))(gamma[c] * inverse[c]);
        bound = std::max(bound, ((127 << kGradientFraction) + std::abs(minus) + std::abs(slope)) * std::abs(a[c]));
    }
    *shift = shift_below(bound >> 23, 127);
    *exponent = static_cast<i32>(top - kGradientFraction + *shift);
    return "int_norm_coefficients_portable";
}

// mean and var become what they are after a batch of n codes with these sums, in steps of 2^step
SB_EXPORT const char* sb_int_running_statistics(
    const float* mean, const float* var, const sb::i64* total, const sb::i64* spread, const sb::i32* step,
    sb::i64 channels, sb::i64 n, sb::i64 weight, float* new_mean, float* new_var, int) {
    using namespace sb;
    for (i64 c = 0; c < channels; ++c) {
        const i64 d = divide(kFactor * spread[c], n * n);
        new_mean[c] = blended(
            mean[c], divide(total[c] << kGradientFraction, n), i64{step[c]} - kGradientFraction, weight);
        new_var[c] = blended(var[c], d * d, 2 * (i64{step[c]} - kFactorBits), weight);
    }
    return "int_running_statistics_portable";
}
