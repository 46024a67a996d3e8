// The small ops of ops/constants.py: a few IEEE operations on one number for each channel. Loops too short for an ISA of
// their own, so one kernel serves every machine. NORMATIVE text: the bodies there; each operation rounds by itself.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "numerics.h"
#include "subbyte.h"

namespace sb {
namespace {

// An operand with one number for all channels, or one for each.
template <class T>
struct Each {
    const T* p;
    i64 step;

    Each(const T* p, i64 n) : p(p), step(n > 1) {}
    T operator[](i64 c) const { return p[step * c]; }
};

i32 to_fixed(float v, float high) {
    if (std::isnan(v)) return 0;
    return static_cast<i32>(std::lrintf(std::min(std::max(v, -high), high)));
}

// NaN if one of them is.
double greater(double a, double b) { return std::isnan(a) || a > b ? a : b; }

i32 bits_of(float v) {
    i32 bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return bits & 0x7FFFFFFF;
}

}  // namespace
}  // namespace sb

// mu, d, factor: one for each of `channels` statistics; scale: one for each of the last `scales` of them, repeated.
SB_EXPORT const char* sb_norm_constants(
    const float* s, sb::i64 s_channels, const sb::i64* total, const sb::i64* spread, const sb::i64* least,
    const sb::i64* greatest, sb::i64 channels, sb::i64 scales, sb::i64 n, sb::i64 count, int l2, double eps,
    double l1_factor, int bits, double* mu, double* d, float* factor, float* scale, int) {
    using namespace sb;
    const Each<float> step(s, s_channels);
    const double samples = static_cast<double>(n), counted = static_cast<double>(count), root = std::sqrt(eps);
    const float qmax = static_cast<float>((1 << (bits - 1)) - 1), top_code = qmax * kOne;
    std::vector<double> units(static_cast<size_t>(channels));
    std::vector<double> reaches(static_cast<size_t>(scales), -std::numeric_limits<double>::infinity());
    for (i64 c = 0; c < channels; ++c) {
        const double one = step[c], mean = static_cast<double>(spread[c]) / (counted * samples);
        mu[c] = one * static_cast<double>(total[c]) / samples;
        d[c] = l2 ? std::sqrt(one * one * mean + eps) : l1_factor * (one * mean) + root;
        const double unit = units[static_cast<size_t>(c)] = one / (counted * d[c]);
        const i64 top = std::max(count * greatest[c] - total[c], total[c] - count * least[c]);
        double& reach = reaches[static_cast<size_t>(c % scales)];
        reach = greater(reach, unit * static_cast<double>(top));
    }
    std::vector<double> inverses(static_cast<size_t>(scales));
    for (i64 i = 0; i < scales; ++i) {
        float reach = static_cast<float>(reaches[static_cast<size_t>(i)]);
        if (reach < kRangeFloor) reach = 0.0f;
        inverses[static_cast<size_t>(i)] = static_cast<double>(inverse_step(reach, top_code));
        scale[i] = reach / qmax;
    }
    for (i64 c = 0; c < channels; ++c) {
        const double by = units[static_cast<size_t>(c)] * inverses[static_cast<size_t>(c % scales)];
        factor[c] = std::isnan(by) || by == std::numeric_limits<double>::infinity() ? 0.0f : static_cast<float>(by);
    }
    return "norm_constants_portable";
}

SB_EXPORT const char* sb_norm_grad_constants(
    const float* s_g, sb::i64 g_channels, const float* s_k, sb::i64 k_channels, const float* s_gamma,
    sb::i64 gamma_channels, const double* d, const sb::i64* sum_h, const sb::i64* sum_hk, const sb::i64* sum_t,
    sb::i64 channels, sb::i64 n, int centred, int l2, double l1_factor, float* a, float* u, float* v, float* t, int) {
    using namespace sb;
    const Each<float> g(s_g, g_channels), k(s_k, k_channels), gamma(s_gamma, gamma_channels);
    const double samples = static_cast<double>(n);
    for (i64 c = 0; c < channels; ++c) {
        const double sk = k[c], mean_hk = sk * static_cast<double>(sum_hk[c]) / samples;
        a[c] = static_cast<float>(static_cast<double>(g[c]) * static_cast<double>(gamma[c]) / d[c]);
        u[c] = centred ? static_cast<float>(static_cast<double>(sum_h[c]) / samples) : 0.0f;
        v[c] = static_cast<float>(l2 ? sk * mean_hk : l1_factor * mean_hk);
        t[c] = centred && !l2 ? static_cast<float>(static_cast<double>(sum_t[c]) / samples) : 0.0f;
    }
    return "norm_grad_constants_portable";
}

SB_EXPORT const char* sb_norm_relu_range(
    const sb::i64* least, const sb::i64* greatest, const sb::i64* total, const float* factor, sb::i64 channels,
    sb::i64 n, int bits, const sb::i8* gamma, sb::i64 gamma_channels, const float* scale, sb::i64 scale_channels,
    const float* beta, sb::i64 beta_channels, int half, float* r, int) {
    using namespace sb;
    const Each<i8> weight(gamma, gamma_channels);
    const Each<float> by(scale, scale_channels), add(beta, beta_channels);
    const float high = static_cast<float>(((1 << (bits - 1)) - 1) << 16);
    for (i64 c = 0; c < channels; ++c) {
        i32 best = 0;
        for (const i64 q : {least[c], greatest[c]}) {
            const i32 f = to_fixed(static_cast<float>(n * q - total[c]) * factor[c], high);
            const i32 k = (f + 0x7FFF + ((f >> 16) & 1)) >> 16;
            const float y = static_cast<float>(k * weight[c]) * by[c] + add[c];
            best = std::max(best, y <= 0 ? 0 : bits_of(y));  // ReLU; NaN stays
        }
        r[c] = range_from_bits(kept_bits(best, half));
    }
    return "norm_relu_range_portable";
}

// low, high: (3, channels), for k < 0, k = 0, k > 0.
SB_EXPORT const char* sb_norm_grad_range(
    const sb::i64* low, const sb::i64* high, sb::i64 channels, const sb::i8* gamma, sb::i64 gamma_channels,
    const float* a, const float* u, const float* v, const float* t, int half, float* r, int) {
    using namespace sb;
    const Each<i8> weight(gamma, gamma_channels);
    for (i64 c = 0; c < channels; ++c) {
        i32 best = 0;
        for (int sign = -1; sign <= 1; ++sign) {
            const i64 at = (sign + 1) * channels + c;
            if (low[at] > high[at]) continue;
            const float minus = u[c] + v[c] * (static_cast<float>(sign) - t[c]);
            for (const i64 g : {low[at], high[at]})
                best = std::max(best, bits_of(a[c] * (static_cast<float>(g * weight[c]) - minus)));
        }
        r[c] = range_from_bits(kept_bits(best, half));
    }
    return "norm_grad_range_portable";
}

// apart > 0: no exponents unless a quarter of the channels above 0 have one of at least `apart`.
SB_EXPORT const char* sb_shift_exponents(
    const float* r_k, sb::i64 channels, int top, int apart, float* r, sb::u8* shift, int) {
    using namespace sb;
    float largest = r_k[0];
    for (i64 c = 1; c < channels; ++c)
        if (std::isnan(r_k[c]) || r_k[c] > largest) largest = r_k[c];
    *r = largest;
    for (i64 c = 0; c < channels; ++c) {
        u8 e = 0;
        for (int i = 1; i <= top; ++i) {
            const float limit = std::ldexp(largest, -i);
            e += r_k[c] <= limit && limit >= kRangeFloor;
        }
        shift[c] = e;
    }
    i64 alive = 0, far = 0;
    for (i64 c = 0; c < channels; ++c)
        if (r_k[c] > 0) ++alive, far += shift[c] >= apart;
    if (apart && 4 * far < std::max<i64>(alive, 1)) std::fill(shift, shift + channels, u8{0});
    return "shift_exponents_portable";
}
