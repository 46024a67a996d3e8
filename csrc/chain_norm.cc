// sb_chain_norm and sb_chain_norm_grad: what stands around the passes of a fused chain's norm, in one call each
// (ops/chain_norm.py): its passes are those of the ops that it stands for. A call for each of them, and a tensor for
// each of their numbers, costs more than a pass over a small layer.
#include <algorithm>
#include <cmath>
#include <vector>

#include "chain.h"
#include "cpu_features.h"
#include "exports.h"
#include "norm_scales.h"
#include "numerics.h"

namespace sb {
namespace {

Op<ChainKernels> norm_op{"chain_norm"}, grad_op{"chain_norm_grad"};

// One range for all channels, or one for each: NaN if one of them is.
std::vector<float> ranges(const float* r_k, i64 channels, bool whole) {
    if (!whole) return {r_k, r_k + channels};
    float most = r_k[0];
    for (i64 c = 1; c < channels; ++c)
        if (std::isnan(r_k[c]) || r_k[c] > most) most = r_k[c];
    return {most};
}

}  // namespace
}  // namespace sb

// y: outer * channels * inner floats, r_k: the range of each channel. half: they are bfloat16, and so is what the norm
// gives. gamma, beta: one number for each or one for all, or nullptr. whole: y is quantized with one range. Results: q
// as y; q_gamma as gamma; s_gamma one number, all others one for each channel.
SB_EXPORT const char* sb_chain_norm(
    const void* y, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, const float* r_k, const float* gamma,
    sb::i64 gammas, const float* beta, sb::i64 betas, int whole, int input_bits, int bits, int saved_bits,
    int weight_bits, double eps, double l1_factor, sb::i8* q, sb::i64* total, float* factor, sb::i8* q_gamma,
    float* s_gamma, float* scale, float* saved_scale, double* mu, double* d, float* r_relu, int threads) {
    using namespace sb;
    const i64 n = outer * channels * inner, count = outer * inner;
    const int top = (1 << (input_bits - 1)) - 1;
    const std::vector<float> r = ranges(r_k, channels, whole);
    const std::vector<float> s = steps(r.data(), static_cast<i64>(r.size()), input_bits);
    sb_quantize(
        y, half, n, r.data(), static_cast<i64>(r.size()), whole ? n : inner, nullptr, 1, 1, nullptr, 1, n, 1, -top, top,
        q, threads);
    const auto c = static_cast<size_t>(channels);
    std::vector<i64> spread(c), least(c), greatest(c);
    sb_norm_stats(
        reinterpret_cast<const u8*>(q), 1, outer, channels, inner, 0, total, spread.data(), least.data(),
        greatest.data(), threads);
    sb_norm_constants(
        s.data(), static_cast<i64>(s.size()), total, spread.data(), least.data(), greatest.data(), channels, channels,
        count, count, 0, eps, l1_factor, bits, mu, d, factor, scale, 1);
    quantize_gamma(gamma, gammas, weight_bits, q_gamma, s_gamma);
    const float wider = static_cast<float>(1 << std::max(bits - saved_bits, 0)), none = 0.0f;
    for (i64 i = 0; i < channels; ++i) saved_scale[i] = scale[i] * wider, scale[i] *= *s_gamma;
    sb_norm_relu_range(
        least.data(), greatest.data(), total, factor, channels, count, bits, q_gamma, gammas, scale, channels,
        beta ? beta : &none, beta ? betas : 1, half, r_relu, 1);
    return norm_op.best().name;
}

// g: outer * channels * inner floats (half: bfloat16, as h and dx are then); mask: a bit each, or nullptr; order:
// draw.h. h: g where the mask passes, wanted unless nullptr. Results: q_g as g, all others one number for each channel.
SB_EXPORT const char* sb_chain_norm_grad(
    const void* g, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* mask, const sb::i64* stream,
    sb::i64 order_batch, sb::i64 order_channels, sb::i64 order_pixels, int whole, int bits, const sb::u8* saved,
    int saved_bits, const float* s_k, sb::i64 s_ks, const sb::i8* q_gamma, sb::i64 gammas, const float* s_gamma,
    const double* d, double l1_factor, sb::i8* q_g, void* h, float* a, float* u, float* v, float* t, float* r_dx,
    float* dgamma, float* dbeta, int threads) {
    using namespace sb;
    const auto c = static_cast<size_t>(channels);
    std::vector<float> r_k(c);
    sb_relu_grad(g, half, outer, channels, inner, mask, r_k.data(), h, threads);
    const std::vector<float> r = ranges(r_k.data(), channels, whole);
    const std::vector<float> s = steps(r.data(), static_cast<i64>(r.size()), bits);
    if (!sb_relu_grad_quantize(
            h ? h : g, half, outer, channels, inner, h ? nullptr : mask, r.data(), static_cast<i64>(r.size()), stream,
            order_batch, order_channels, order_pixels, (1 << (bits - 1)) - 1, q_g, threads))
        return nullptr;
    std::vector<i64> sums(3 * c), low(3 * c), high(3 * c), sum_h(c), sum_hk(c);
    sb_norm_grad_sums(
        q_g, outer, channels, inner, saved, saved_bits, sums.data(), low.data(), high.data(), threads);
    for (size_t i = 0; i < c; ++i) {
        const i64 weight = q_gamma[gammas == 1 ? 0 : i];
        sum_h[i] = weight * sums[i], sum_hk[i] = weight * sums[c + i];
        const float step = s[whole ? 0 : i];
        dgamma[i] = static_cast<float>(sums[c + i]) * (step * s_k[s_ks == 1 ? 0 : i]);
        dbeta[i] = static_cast<float>(sums[i]) * step;
    }
    sb_norm_grad_constants(
        s.data(), static_cast<i64>(s.size()), s_k, s_ks, s_gamma, 1, d, sum_h.data(), sum_hk.data(), &sums[2 * c],
        channels, outer * inner, 1, 0, l1_factor, a, u, v, t, 1);
    sb_norm_grad_range(low.data(), high.data(), channels, q_gamma, gammas, a, u, v, t, half, r_dx, 1);
    return grad_op.best().name;
}
