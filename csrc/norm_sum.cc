// sb_norm_stats and sb_norm_grad_stats: the exact integer sums of quantized normalization, for any dense layout.
//
// A statistic belongs to a channel of an (outer, channels, inner) tensor. The kernels sum the columns of the matrices
// that strips.h makes of it; where outer = 1 (layer norm) a channel is a row, finished in one visit while it lies in
// the cache.
// Each worker adds to numbers of its own; integers do not mind the order in which those are merged.
#include <vector>

#include "cpu_features.h"
#include "norm.h"
#include "parallel.h"
#include "strips.h"

namespace sb {
namespace {

Op<NormSumKernels> stats_op{"norm_stats"}, uncentred_op{"norm_stats_uncentred"}, grad_op{"norm_grad_stats"};

constexpr i64 kBlock = 1 << 15;  // codes in a task
constexpr i64 kGrain = 1 << 14;  // codes that are worth a second thread
static_assert(kBlock <= kMaxRows, "a task stays within a call's bound");

i64 floor_div(i64 a, i64 b) { return a / b - (a % b < 0); }

// What a channel's statistics are made of, of codes moved by `flip`.
struct Moments {
    i64 sum = 0, squares = 0, sum_above = 0, count_above = 0;
    i64 least = INT16_MAX, greatest = INT16_MIN;

    void write(i64 n, u8 flip, bool l2, i64* total, i64* spread, i64* low, i64* high) const {
        *total = sum + n * flip;
        *spread = l2 ? n * squares - sum * sum : 2 * (n * sum_above - sum * count_above);
        *low = least + flip, *high = greatest + flip;
    }
};

// threshold(moments): codes above it are summed, unless squares are wanted.
template <class Threshold>
Moments of_row(const NormSumKernels& kernel, const u8* q, u8 flip, i64 n, bool l2, const Threshold& threshold) {
    Moments m;
    i32 least, greatest;
    kernel.row_moments(q, flip, n, &m.sum, &least, &greatest);
    m.least = least, m.greatest = greatest;
    if (l2)
        kernel.row_squares(q, flip, n, &m.squares);
    else
        kernel.row_above(q, flip, n, static_cast<i32>(threshold(m)), &m.sum_above, &m.count_above);
    return m;
}

template <class Threshold>
std::vector<Moments> by_slots(
    const NormSumKernels& kernel, const u8* q, u8 flip, const Shape& shape, bool l2, int workers,
    const Threshold& threshold) {
    const Strips strips(shape);
    const i64 n = strips.slots(), tile = strips.tile(kBlock);
    PerWorker<i32> sums(n, workers, 0), sums_above(n, workers, 0), counts_above(n, workers, 0);
    PerWorker<i16> leasts(n, workers, INT16_MAX), greatests(n, workers, INT16_MIN);
    PerWorker<i64> squares(l2 ? n : 0, workers, 0);
    const auto tiles = [&](const auto& matrix) {
        parallel(workers, ceil_div(shape.size(), tile), [&](i64 task, int w) {
            const i64 begin = task * tile, end = std::min(begin + tile, shape.size());
            strips.visit(begin, end, [&](i64 at, i64 rows, i64 columns, i64 s) { matrix(at, rows, columns, s, w); });
        });
    };
    tiles([&](i64 at, i64 rows, i64 columns, i64 s, int w) {
        kernel.moments(q + at, flip, rows, columns, sums.of(w) + s, leasts.of(w) + s, greatests.of(w) + s);
    });
    std::vector<Moments> moments(static_cast<size_t>(shape.channels));
    for (i64 c = 0; c < shape.channels; ++c) {
        Moments& m = moments[static_cast<size_t>(c)];
        for (int w = 0; w < workers; ++w)
            strips.of_channel(c, [&](i64 s) {
                m.sum += sums.of(w)[s];
                m.least = std::min<i64>(m.least, leasts.of(w)[s]);
                m.greatest = std::max<i64>(m.greatest, greatests.of(w)[s]);
            });
    }
    const Lines<i16> thresholds =
        strips.spread<i16>([&](i64 c) { return static_cast<i16>(threshold(moments[static_cast<size_t>(c)])); });
    tiles([&](i64 at, i64 rows, i64 columns, i64 s, int w) {
        if (l2)
            kernel.squares(q + at, flip, rows, columns, squares.of(w) + s);
        else
            kernel.above(q + at, flip, rows, columns, &thresholds[s], sums_above.of(w) + s, counts_above.of(w) + s);
    });
    for (i64 c = 0; c < shape.channels; ++c) {
        Moments& m = moments[static_cast<size_t>(c)];
        for (int w = 0; w < workers; ++w)
            strips.of_channel(c, [&](i64 s) {
                if (l2) m.squares += squares.of(w)[s];
                m.sum_above += sums_above.of(w)[s];
                m.count_above += counts_above.of(w)[s];
            });
    }
    return moments;
}

}  // namespace
}  // namespace sb

// q: outer * channels * inner codes, at least one -> (S, A, least, greatest) of each channel.
SB_EXPORT const char* sb_norm_stats(
    const sb::u8* q, int is_signed, sb::i64 outer, sb::i64 channels, sb::i64 inner, int l2, sb::i64* total,
    sb::i64* spread, sb::i64* low, sb::i64* high, int threads) {
    using namespace sb;
    const auto kernel = stats_op.best();
    const Shape shape{outer, channels, inner};
    const u8 flip = is_signed ? 0 : 128;
    const int workers = useful_threads(threads, shape.size(), kGrain);
    std::vector<Moments> moments(static_cast<size_t>(channels));
    const auto around_mean = [&](const Moments& m) { return floor_div(m.sum, shape.count()); };
    if (outer == 1) {
        const i64 group = ceil_div(kBlock, inner);
        parallel(workers, ceil_div(channels, group), [&](i64 task, int) {
            for (i64 c = task * group; c < std::min((task + 1) * group, channels); ++c)
                moments[static_cast<size_t>(c)] = of_row(*kernel.table, q + c * inner, flip, inner, l2, around_mean);
        });
    } else {
        moments = by_slots(*kernel.table, q, flip, shape, l2, workers, around_mean);
    }
    for (i64 c = 0; c < channels; ++c)
        moments[static_cast<size_t>(c)].write(shape.count(), flip, l2, total + c, spread + c, low + c, high + c);
    return kernel.name;
}

// (sum, A, M) of a norm without a mean: sum |q| = 2 sum_{q > 0} q - sum q, or the squares; M = max |q|.
SB_EXPORT const char* sb_norm_stats_uncentred(
    const sb::u8* q, int is_signed, sb::i64 outer, sb::i64 channels, sb::i64 inner, int l2, sb::i64* spread,
    sb::i64* most, int threads) {
    using namespace sb;
    if (!is_signed) return nullptr;
    const auto kernel = uncentred_op.best();
    const Shape shape{outer, channels, inner};
    const int workers = useful_threads(threads, shape.size(), kGrain);
    std::vector<Moments> moments(static_cast<size_t>(channels));
    const auto around_zero = [](const Moments&) { return i64{0}; };
    if (outer == 1) {
        const i64 group = ceil_div(kBlock, inner);
        parallel(workers, ceil_div(channels, group), [&](i64 task, int) {
            for (i64 c = task * group; c < std::min((task + 1) * group, channels); ++c)
                moments[static_cast<size_t>(c)] = of_row(*kernel.table, q + c * inner, 0, inner, l2, around_zero);
        });
    } else {
        moments = by_slots(*kernel.table, q, 0, shape, l2, workers, around_zero);
    }
    for (i64 c = 0; c < channels; ++c) {
        const Moments& m = moments[static_cast<size_t>(c)];
        spread[c] = l2 ? m.squares : 2 * m.sum_above - m.sum;
        most[c] = std::max(m.greatest, -m.least);
    }
    return kernel.name;
}

namespace sb {
namespace {

struct GradSum {
    i64 g = 0, gk = 0, sign = 0;
};

// sum g, sum g k, sum sign(k) of each channel
std::vector<GradSum> grad_sums(
    const NormSumKernels& kernel, const i8* g, const i8* k, const Shape& shape, int threads) {
    const Strips strips(shape);
    const int workers = useful_threads(threads, shape.size(), kGrain);
    const i64 tile = strips.tile(kBlock);
    PerWorker<i32> gs(strips.slots(), workers, 0), signs(strips.slots(), workers, 0);
    PerWorker<i64> gks(strips.slots(), workers, 0);
    parallel(workers, ceil_div(shape.size(), tile), [&](i64 task, int w) {
        strips.visit(task * tile, std::min((task + 1) * tile, shape.size()), [&](i64 at, i64 rows, i64 columns, i64 s) {
            kernel.grad(g + at, k + at, rows, columns, gs.of(w) + s, gks.of(w) + s, signs.of(w) + s);
        });
    });
    std::vector<GradSum> sums(static_cast<size_t>(shape.channels));
    for (i64 c = 0; c < shape.channels; ++c) {
        GradSum& sum = sums[static_cast<size_t>(c)];
        for (int w = 0; w < workers; ++w)
            strips.of_channel(c, [&](i64 s) {
                sum.g += gs.of(w)[s], sum.gk += gks.of(w)[s], sum.sign += signs.of(w)[s];
            });
    }
    return sums;
}

}  // namespace
}  // namespace sb

// g, k: outer * channels * inner codes -> sums for each channel, of which gamma has one value (or one for all).
SB_EXPORT const char* sb_norm_grad_stats(
    const sb::i8* g, const sb::i8* k, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::i8* gamma,
    sb::i64 gamma_channels, sb::i64* sum_h, sb::i64* sum_hk, sb::i64* sum_sign, sb::i64* sum_g, sb::i64* sum_gk,
    int threads) {
    using namespace sb;
    const auto kernel = grad_op.best();
    const std::vector<GradSum> sums = grad_sums(*kernel.table, g, k, {outer, channels, inner}, threads);
    for (i64 c = 0; c < channels; ++c) {
        const GradSum& sum = sums[static_cast<size_t>(c)];
        const i64 by = gamma[gamma_channels == 1 ? 0 : c];
        sum_h[c] = by * sum.g, sum_hk[c] = by * sum.gk, sum_sign[c] = sum.sign;
        sum_g[c] = sum.g, sum_gk[c] = sum.gk;
    }
    return kernel.name;
}

// The same where a statistic belongs to a sample and `group` channels (group norm): g, k (samples, channels, inner).
SB_EXPORT const char* sb_norm_grad_stats_groups(
    const sb::i8* g, const sb::i8* k, sb::i64 samples, sb::i64 channels, sb::i64 inner, sb::i64 group,
    const sb::i8* gamma, sb::i64 gamma_channels, sb::i64* sum_h, sb::i64* sum_hk, sb::i64* sum_sign, sb::i64* sum_g,
    sb::i64* sum_gk, int threads) {
    using namespace sb;
    const auto kernel = grad_op.best();
    const i64 planes = samples * channels, statistics = planes / group;
    const std::vector<GradSum> sums = grad_sums(*kernel.table, g, k, {1, planes, inner}, threads);
    for (i64 i = 0; i < statistics; ++i) sum_h[i] = sum_hk[i] = sum_sign[i] = 0;
    for (i64 c = 0; c < channels; ++c) sum_g[c] = sum_gk[c] = 0;
    for (i64 plane = 0; plane < planes; ++plane) {
        const GradSum& sum = sums[static_cast<size_t>(plane)];
        const i64 c = plane % channels, i = plane / group, by = gamma[gamma_channels == 1 ? 0 : c];
        sum_h[i] += by * sum.g, sum_hk[i] += by * sum.gk, sum_sign[i] += sum.sign;
        sum_g[c] += sum.g, sum_gk[c] += sum.gk;
    }
    return kernel.name;
}

// The same where statistics belong to rows and gamma to columns (layer norm): g, k (rows, columns).
SB_EXPORT const char* sb_norm_grad_stats_rows(
    const sb::i8* g, const sb::i8* k, sb::i64 rows, sb::i64 columns, const sb::i8* gamma, sb::i64 gamma_channels,
    sb::i64* sum_h, sb::i64* sum_hk, sb::i64* sum_sign, sb::i64* sum_g, sb::i64* sum_gk, int threads) {
    using namespace sb;
    const auto kernel = grad_op.best();
    const i64 group = std::min(ceil_div(kBlock, columns), kMaxRows);
    const int workers = useful_threads(threads, rows * columns, kGrain);
    Lines<i16> gammas(static_cast<size_t>(columns));
    for (i64 c = 0; c < columns; ++c) gammas[static_cast<size_t>(c)] = gamma[gamma_channels == 1 ? 0 : c];
    PerWorker<i32> gs(columns, workers, 0), signs(columns, workers, 0);
    PerWorker<i64> gks(columns, workers, 0);
    parallel(workers, ceil_div(rows, group), [&](i64 task, int w) {
        const i64 begin = task * group, end = std::min(begin + group, rows);
        kernel.table->grad(
            g + begin * columns, k + begin * columns, end - begin, columns, gs.of(w), gks.of(w), signs.of(w));
        for (i64 r = begin; r < end; ++r) {
            i64 sums[3];
            kernel.table->grad_row(g + r * columns, k + r * columns, gammas.data(), columns, sums);
            sum_h[r] = sums[0], sum_hk[r] = sums[1], sum_sign[r] = sums[2];
        }
    });
    for (i64 c = 0; c < columns; ++c) {
        sum_g[c] = sum_gk[c] = 0;
        for (int w = 0; w < workers; ++w) sum_g[c] += gs.of(w)[c], sum_gk[c] += gks.of(w)[c];
    }
    return kernel.name;
}
