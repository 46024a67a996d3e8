// sb_norm_forward and sb_norm_backward: a whole quantized norm in one call (ops/norm_layer.py). The passes are those of
// the ops that it stands for; what lies between them is in memory that the next call uses again.
//
// Passes over x, forward (the range is known): codes (reads 4 bytes an element, writes 1), two of sums (1 each), one to
// y and the packed xhat (1, writes 4 and saved_bits / 8). Backward: codes of g (4, writes 1), unpacking (writes 1),
// sums (2), dx (2, writes 4). In bfloat16 the 4 are 2.
#include <vector>

#include "chain_values.h"
#include "cpu_features.h"
#include "exports.h"
#include "memory.h"
#include "norm.h"
#include "norm_scales.h"
#include "numerics.h"
#include "parallel.h"

namespace sb {
namespace {

Op<NormPassKernels> forward_op{"norm_forward"}, backward_op{"norm_backward"};
Op<ChainKernels> floats_op{"norm_grad_codes"};

constexpr i64 kBlock = 1 << 14;  // elements in a task
constexpr i64 kGrain = 1 << 13;  // elements that are worth a second thread

// dx where the statistic and gamma belong to channels.
void batch_grad(
    const Shape& shape, const i8* g, const i8* k, Values<i8> gamma, const float* a, const float* u, const float* v,
    const float* t, FloatsOut dx, int threads) {
    const ChainKernels& kernel = *floats_op.best().table;
    const i64 n = shape.size(), c = shape.channels;
    const Strips strips(shape);
    const NormGrad norm(strips, gamma, {a, c}, {u, c}, {v, c}, {t, c});
    const i64 tile = strips.tile(kBlock);
    will_fill(dx.p, n * dx.bytes());
    parallel(useful_threads(threads, n, kGrain), ceil_div(n, tile), [&](i64 task, int) {
        strips.visit(task * tile, std::min((task + 1) * tile, n), [&](i64 at, i64 rows, i64 columns, i64 slot) {
            kernel.norm_grad_floats(g + at, k + at, norm.operands, slot, rows, columns, dx + at);
        });
    });
}

}  // namespace
}  // namespace sb

// x: n floats (half: bfloat16, and y too). r: the range for each index of an axis; gamma, beta: likewise, or nullptr
// with 1 channel. The statistic has an axis, its scale one of as many or fewer channels, the last of the statistic's.
// count: codes of a statistic.
//   gamma_codes, gamma_scale, mu, d, saved_scale, y, saved   results; saved_scale one for each scale channel
SB_EXPORT const char* sb_norm_forward(
    const void* x, int half, sb::i64 n, const float* r, sb::i64 r_channels, sb::i64 r_inner, const float* gamma,
    sb::i64 gamma_channels, sb::i64 gamma_inner, const float* beta, sb::i64 beta_channels, sb::i64 beta_inner,
    sb::i64 channels, sb::i64 inner, sb::i64 scales, sb::i64 scale_inner, sb::i64 count, double eps, double l1_factor,
    int input_bits, int bits, int saved_bits, int weight_bits, int l2, int centred, void* y, sb::u8* saved,
    float* saved_scale, sb::i8* gamma_codes, float* gamma_scale, double* mu, double* d, int threads) {
    using namespace sb;
    const int top = (1 << (input_bits - 1)) - 1;
    const Scratch scratch(n);
    i8* q = scratch.as<i8>();
    sb_quantize(x, half, n, r, r_channels, r_inner, nullptr, 1, 1, nullptr, 1, n, 1, -top, top, q, threads);

    const i64 outer = n / (channels * inner), each = centred ? count : 1;
    const auto c = static_cast<size_t>(channels);
    std::vector<i64> total(c), spread(c), least(c), greatest(c);
    const auto* bytes = reinterpret_cast<const u8*>(q);
    if (centred) {
        sb_norm_stats(
            bytes, 1, outer, channels, inner, l2, total.data(), spread.data(), least.data(), greatest.data(), threads);
    } else {
        sb_norm_stats_uncentred(bytes, 1, outer, channels, inner, l2, spread.data(), greatest.data(), threads);
        for (size_t i = 0; i < c; ++i) least[i] = -greatest[i];
    }
    quantize_gamma(gamma, gamma_channels, weight_bits, gamma_codes, gamma_scale);
    std::vector<float> factor(c), scale(static_cast<size_t>(scales)), s(c);
    const std::vector<float> step = steps(r, r_channels, input_bits);
    for (size_t i = 0; i < c; ++i) s[i] = step[r_channels == 1 ? 0 : i];
    sb_norm_constants(
        s.data(), channels, total.data(), spread.data(), least.data(), greatest.data(), channels, scales, count, each,
        l2, eps, l1_factor, bits, mu, d, factor.data(), scale.data(), 1);
    const float wider = static_cast<float>(1 << std::max(bits - saved_bits, 0));
    for (i64 i = 0; i < scales; ++i) saved_scale[i] = scale[i] * wider, scale[i] *= *gamma_scale;

    const float none = 0.0f;
    if (!beta) beta = &none;
    const char* done = nullptr;
    if (scales == channels && scale_inner == inner && (gamma_channels == 1 || gamma_inner == inner) &&
        (beta_channels == 1 || beta_inner == inner)) {
        float range;
        done = sb_norm_relu(
            q, outer, channels, inner, total.data(), channels, factor.data(), channels, gamma_codes, gamma_channels,
            scale.data(), scales, beta, beta_channels, each, bits, saved_bits, nullptr, y, half, &range, saved, nullptr,
            threads);
    }
    if (!done) {
        const NormApply call{
            q, true, n, {total.data(), channels, inner}, {factor.data(), channels, inner},
            {gamma_codes, gamma_channels, gamma_inner}, {scale.data(), scales, scale_inner},
            {beta, beta_channels, beta_inner}, each, bits, {y, half != 0}, nullptr, saved, saved_bits};
        norm_apply(call, threads);
    }
    return forward_op.best().name;
}

// g: n floats in x's order (half: bfloat16, and dx too). params: how many sums the gradients of gamma and beta are.
//   kind   0: the statistic is the parameters' channel; 1: statistics are rows, parameters columns;
//          2: rows of `params / scales` channels each (group norm), whose runs are `run` long
SB_EXPORT const char* sb_norm_backward(
    const void* g, int half, sb::i64 n, const float* r, sb::i64 r_channels, sb::i64 r_inner, const sb::i64* stream,
    sb::i64 order_batch, sb::i64 order_channels, sb::i64 order_pixels, const sb::u8* saved, int saved_bits,
    const float* saved_scale, sb::i64 scales, const sb::i8* gamma, sb::i64 gamma_channels, sb::i64 gamma_inner,
    const float* gamma_scale, const double* d, sb::i64 channels, sb::i64 inner, sb::i64 params, int kind, sb::i64 run,
    sb::i64 count, double l1_factor, int bits, int l2, int centred, void* dx, float* dgamma, float* dbeta,
    int threads) {
    using namespace sb;
    const int top = (1 << (bits - 1)) - 1;
    const Scratch codes(n), unpacked(n);
    i8 *q = codes.as<i8>(), *k = unpacked.as<i8>();
    if (!sb_quantize(
            g, half, n, r, r_channels, r_inner, nullptr, 1, 1, stream, order_batch, order_channels, order_pixels, -top,
            top, q, threads))
        return nullptr;
    sb_unpack_codes(saved, n, saved_bits, 1, reinterpret_cast<u8*>(k), threads);

    const auto c = static_cast<size_t>(channels), p = static_cast<size_t>(params);
    std::vector<i64> sum_h(c), sum_hk(c), sum_t(c), sum_g(p), sum_gk(p);
    const i64 outer = n / (channels * inner);
    const auto sums = [&](auto function, auto... sizes) {
        function(
            q, k, sizes..., gamma, gamma_channels, sum_h.data(), sum_hk.data(), sum_t.data(), sum_g.data(),
            sum_gk.data(), threads);
    };
    if (kind == 0)
        sums(sb_norm_grad_stats, outer, channels, inner);
    else if (kind == 1)
        sums(sb_norm_grad_stats_rows, channels, inner);
    else
        sums(sb_norm_grad_stats_groups, n / (params * run), params, run, params / scales);

    const std::vector<float> step = steps(r, r_channels, bits);
    std::vector<float> s_g(c), s_k(c), a(c), u(c), v(c), t(c);
    for (i64 i = 0; i < channels; ++i) s_g[i] = step[i % r_channels], s_k[i] = saved_scale[i % scales];
    sb_norm_grad_constants(
        s_g.data(), channels, s_k.data(), channels, gamma_scale, 1, d, sum_h.data(), sum_hk.data(), sum_t.data(),
        channels, count, centred, l2, l1_factor, a.data(), u.data(), v.data(), t.data(), 1);
    if (kind == 0 && !l2 && (gamma_channels == 1 || gamma_inner == inner))
        batch_grad(
            {outer, channels, inner}, q, k, {gamma, gamma_channels}, a.data(), u.data(), v.data(), t.data(),
            {dx, half != 0}, threads);
    else
        sb_norm_grad_apply(
            q, k, n, gamma, gamma_channels, gamma_inner, a.data(), channels, inner, u.data(), channels, inner, v.data(),
            channels, inner, t.data(), channels, inner, l2, dx, half, threads);
    for (i64 i = 0; i < params; ++i) {
        const float one = step[i / (params / r_channels)], other = saved_scale[i / (params / scales)];
        dgamma[i] = static_cast<float>(sum_gk[i]) * (one * other);
        dbeta[i] = static_cast<float>(sum_g[i]) * one;
    }
    return backward_op.best().name;
}
