// The backward passes of a fused chain. The masks and codes that the forward pass packed are unpacked a tile at a time.
#include <vector>

#include "amax.h"
#include "chain.h"
#include "chain_values.h"
#include "cpu_features.h"
#include "draw.h"
#include "memory.h"
#include "numerics.h"
#include "pack.h"
#include "parallel.h"

namespace sb {
namespace {

Op<ChainKernels> grad_op{"relu_grad"}, quantize_op{"relu_grad_quantize"}, sums_op{"norm_grad_sums"},
    codes_op{"norm_grad_codes"}, range_op{"norm_grad_amax"};
Op<AmaxKernels> amax_op{"amax"};
Op<PackKernels> unpack_op{"unpack_codes"};
Op<QuantizeKernels> draw_op{"quantize_sr"};

constexpr i64 kTile = 4096;      // elements, at most, to which no random bits belong
constexpr i64 kBlock = 1 << 15;  // elements in a task, about
constexpr i64 kGrain = 1 << 14;  // elements that are worth a second thread

// tile(begin, end, unpacked codes, worker) over packed codes of n elements; nullptr where there are none
template <class Tile>
void unpacked_tiles(const Strips& strips, i64 n, const u8* packed, int bits, int workers, const Tile& tile) {
    const PackKernels& unpack = *unpack_op.best().table;
    const i64 most = strips.tile(kTile), group = std::max<i64>(1, kBlock / most);
    std::vector<Unpacked> codes = Unpacked::for_workers(workers, unpack, packed, bits, most);
    parallel(workers, ceil_div(n, most * group), [&](i64 task, int worker) {
        const i64 stop = std::min((task + 1) * group * most, n);
        for (i64 begin = task * group * most; begin < stop; begin += most) {
            const i64 end = std::min(begin + most, stop);
            tile(begin, end, packed ? codes[worker].span(begin, end) : nullptr, worker);
        }
    });
}

// part(begin, end, sample) for the samples, runs of `length` elements each, that elements begin .. end belong to
template <class Part>
void by_sample(i64 begin, i64 end, i64 length, const Part& part) {
    while (begin < end) {
        const i64 sample = begin / length, stop = std::min(end, (sample + 1) * length);
        part(begin, stop, sample);
        begin = stop;
    }
}

}  // namespace
}  // namespace sb

// data: outer * channels * inner floats (half: bfloat16); mask: a bit each, or nullptr -> r[channels], and h, of the
// same type, unless it is nullptr.
SB_EXPORT const char* sb_relu_grad(
    const void* data, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* mask, float* r, void* h,
    int threads) {
    using namespace sb;
    const Floats g(data, half);
    const FloatsOut kept(h, half);
    const auto kernel = grad_op.best();
    const Shape shape{outer, channels, inner};
    const Strips strips(shape);
    const i64 n = shape.size();
    const int workers = useful_threads(threads, n, kGrain);
    PerWorker<i32> maxima(strips.slots(), workers, 0);
    if (h) will_fill(h, n * kept.bytes());
    unpacked_tiles(strips, n, mask, 1, workers, [&](i64 begin, i64 end, const i8* passes, int worker) {
        strips.visit(begin, end, [&](i64 at, i64 rows, i64 columns, i64 slot) {
            const u8* these = passes ? reinterpret_cast<const u8*>(passes) + (at - begin) : nullptr;
            kernel.table->relu_grad(
                g + at, these, rows, columns, maxima.of(worker) + slot, kept ? kept + at : kept);
        });
    });
    for (i64 c = 0; c < channels; ++c) {
        i32 most = 0;
        for (int w = 0; w < workers; ++w)
            strips.of_channel(c, [&](i64 s) { most = std::max(most, maxima.of(w)[s]); });
        r[c] = range_from_bits(most);
    }
    return kernel.name;
}

// data += h of relu_grad, for n floats (half: bfloat16). Part of a product's op (scaled_conv2d_grad_input_plus): it has
// no name of its own.
SB_EXPORT const char* sb_relu_grad_add(
    void* data, const void* gradient, int half, const sb::u8* mask, sb::i64 n, int threads) {
    using namespace sb;
    const FloatsOut x(data, half);
    const Floats g(gradient, half);
    const auto kernel = grad_op.best();
    const PackKernels& unpack = *unpack_op.best().table;
    const int workers = useful_threads(threads, n, kGrain);
    std::vector<Unpacked> passes = Unpacked::for_workers(workers, unpack, mask, 1, kTile);
    parallel(workers, ceil_div(n, kBlock), [&](i64 task, int w) {
        const i64 stop = std::min((task + 1) * kBlock, n);
        for (i64 begin = task * kBlock; begin < stop; begin += kTile) {
            const i64 end = std::min(begin + kTile, stop);
            const u8* tile = mask ? reinterpret_cast<const u8*>(passes[w].span(begin, end)) : nullptr;
            kernel.table->relu_grad_add(g + begin, tile, end - begin, x + begin);
        }
    });
    return kernel.name;
}

// data: as in sb_relu_grad. r: one number or one for each channel; batch, channels, pixels: the order of draw.h; top:
// the largest code.
SB_EXPORT const char* sb_relu_grad_quantize(
    const void* data, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* mask, const float* r,
    sb::i64 ranges, const sb::i64* stream, sb::i64 order_batch, sb::i64 order_channels, sb::i64 order_pixels, int top,
    sb::i8* codes, int threads) {
    using namespace sb;
    const Floats g(data, half);
    const auto kernel = quantize_op.best();
    const Shape shape{outer, channels, inner};
    const Order order{order_batch, order_channels, order_pixels};
    const Strips strips(shape);
    const i64 n = shape.size();
    if (!Draws::covers(n, order)) return nullptr;
    const PackKernels& unpack = *unpack_op.best().table;
    const float high = static_cast<float>(top) * kOne;
    const Lines<float> inv = inverse_steps(strips, {r, ranges}, {nullptr, 0}, high);
    const Draws draws(*draw_op.best().table, stream, n, order, strips.tile(Draws::kTile));
    will_fill(codes, n);
    const int workers = useful_threads(threads, n, kGrain);
    std::vector<Unpacked> passes = Unpacked::for_workers(workers, unpack, mask, 1, draws.largest());
    draws.each(workers, [&](i64 begin, i64 end, const u16* bits, int w) {
        const u8* tile = mask ? reinterpret_cast<const u8*>(passes[w].span(begin, end)) : nullptr;
        strips.visit(begin, end, [&](i64 at, i64 rows, i64 columns, i64 slot) {
            kernel.table->relu_grad_quantize(
                g + at, tile ? tile + (at - begin) : nullptr, inv.data() + slot, high, bits + (at - begin), rows,
                columns, codes + at);
        });
    });
    return kernel.name;
}

// g: outer * channels * inner codes, k: saved_bits each -> sums, low, high: (3, channels), as in ops/chain.py.
SB_EXPORT const char* sb_norm_grad_sums(
    const sb::i8* g, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* saved, int saved_bits,
    sb::i64* sums, sb::i64* low, sb::i64* high, int threads) {
    using namespace sb;
    const auto kernel = sums_op.best();
    const Shape shape{outer, channels, inner};
    const Strips strips(shape);
    const i64 n = shape.size(), slots = strips.slots();
    const int workers = useful_threads(threads, n, kGrain);
    const i64 apart = slots + Strips::kRunLanes;
    PerWorker<i32> totals(slots, workers, 0), signs(slots, workers, 0);
    PerWorker<i64> products(slots, workers, 0);
    PerWorker<i16> lows(3 * apart, workers, 128), highs(3 * apart, workers, -128);
    unpacked_tiles(strips, n, saved, saved_bits, workers, [&](i64 begin, i64 end, const i8* k, int w) {
        i16 *l = lows.of(w), *h = highs.of(w);
        const GradSums to{totals.of(w), signs.of(w), products.of(w),
                          {l, l + apart, l + 2 * apart}, {h, h + apart, h + 2 * apart}};
        strips.visit(begin, end, [&](i64 at, i64 rows, i64 columns, i64 slot) {
            kernel.table->norm_grad_sums(g + at, k + (at - begin), rows, columns, to, slot);
        });
    });
    for (i64 c = 0; c < channels; ++c) {
        i64 total = 0, product = 0, sign = 0, l[3] = {128, 128, 128}, h[3] = {-128, -128, -128};
        for (int w = 0; w < workers; ++w)
            strips.of_channel(c, [&](i64 s) {
                total += totals.of(w)[s], product += products.of(w)[s], sign += signs.of(w)[s];
                for (int i = 0; i < 3; ++i) {
                    l[i] = std::min<i64>(l[i], lows.of(w)[i * apart + s]);
                    h[i] = std::max<i64>(h[i], highs.of(w)[i * apart + s]);
                }
            });
        sums[c] = total, sums[channels + c] = product, sums[2 * channels + c] = sign;
        for (int i = 0; i < 3; ++i) low[i * channels + c] = l[i], high[i * channels + c] = h[i];
    }
    return kernel.name;
}

// r[sample] = max |dx| of the norm (half: rounded to bfloat16), for each of `samples` runs of the tensor. Operands as in
// sb_norm_grad_codes.
SB_EXPORT const char* sb_norm_grad_amax(
    const sb::i8* g, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* saved, int saved_bits,
    const sb::i8* gamma, sb::i64 gammas, const float* a, sb::i64 as, const float* u, sb::i64 us, const float* v,
    sb::i64 vs, const float* t, sb::i64 ts, sb::i64 samples, int half, float* r, int threads) {
    using namespace sb;
    const auto kernel = range_op.best();
    const AmaxKernels& amax = *amax_op.best().table;
    const Shape shape{outer, channels, inner};
    const Strips strips(shape);
    const i64 n = shape.size();
    const NormGrad norm(strips, {gamma, gammas}, {a, as}, {u, us}, {v, vs}, {t, ts});
    const int workers = useful_threads(threads, n, kGrain);
    PerWorker<i32> maxima(samples, workers, 0);
    unpacked_tiles(strips, n, saved, saved_bits, workers, [&](i64 begin, i64 end, const i8* k, int w) {
        alignas(64) float dx[kTile];
        strips.visit(begin, end, [&](i64 at, i64 rows, i64 columns, i64 slot) {
            kernel.table->norm_grad_floats(
                g + at, k + (at - begin), norm.operands, slot, rows, columns, dx + (at - begin));
        });
        by_sample(begin, end, n / samples, [&](i64 from, i64 to, i64 sample) {
            amax.run(dx + (from - begin), to - from, maxima.of(w) + sample);
        });
    });
    for (i64 i = 0; i < samples; ++i) {
        i32 most = 0;
        for (int w = 0; w < workers; ++w) most = std::max(most, maxima.of(w)[i]);
        r[i] = range_from_bits(kept_bits(most, half));
    }
    return kernel.name;
}

// dx of the norm as codes. Operands: values and how many, one or one for each channel; stream nullptr: half to even.
// sample_shift: one more shift for each of `samples` runs of the tensor, or nullptr.
SB_EXPORT const char* sb_norm_grad_codes(
    const sb::i8* g, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* saved, int saved_bits,
    const sb::i8* gamma, sb::i64 gammas, const float* a, sb::i64 as, const float* u, sb::i64 us, const float* v,
    sb::i64 vs, const float* t, sb::i64 ts, const float* r, sb::i64 ranges, const sb::u8* shift, sb::i64 shifts,
    const sb::u8* sample_shift, sb::i64 samples, const sb::i64* stream, sb::i64 order_batch, sb::i64 order_channels,
    sb::i64 order_pixels, int top, int half, sb::i8* codes, int threads) {
    using namespace sb;
    const auto kernel = codes_op.best();
    const Shape shape{outer, channels, inner};
    const Order order{order_batch, order_channels, order_pixels};
    const Strips strips(shape);
    const i64 n = shape.size();
    if (stream && !Draws::covers(n, order)) return nullptr;
    const PackKernels& unpack = *unpack_op.best().table;
    const float high = static_cast<float>(top) * kOne;
    std::vector<Lines<float>> inv(256);  // by the exponent of a sample; the first is that of 0
    inv[0] = inverse_steps(strips, {r, ranges}, {shift, shifts}, high);
    for (i64 i = 0; sample_shift && i < samples; ++i) {
        Lines<float>& scaled = inv[sample_shift[i]];
        if (!scaled.empty()) continue;
        scaled = inv[0];
        for (float& x : scaled) x *= power_of_two(sample_shift[i]);
    }
    const NormGrad norm(strips, {gamma, gammas}, {a, as}, {u, us}, {v, vs}, {t, ts});
    const Draws draws(*draw_op.best().table, stream, n, order, strips.tile(Draws::kTile));
    will_fill(codes, n);
    const int workers = useful_threads(threads, n, kGrain);
    std::vector<Unpacked> ks = Unpacked::for_workers(workers, unpack, saved, saved_bits, draws.largest());
    draws.each(workers, [&](i64 begin, i64 end, const u16* bits, int w) {
        const i8* k = ks[w].span(begin, end);
        by_sample(begin, end, sample_shift ? n / samples : n, [&](i64 from, i64 to, i64 sample) {
            const float* by = inv[sample_shift ? sample_shift[sample] : 0].data();
            strips.visit(from, to, [&](i64 at, i64 rows, i64 columns, i64 slot) {
                kernel.table->norm_grad_codes(
                    g + at, k + (at - begin), norm.operands, slot, by, high, half, bits ? bits + (at - begin) : nullptr,
                    rows, columns, codes + at);
            });
        });
    });
    return kernel.name;
}
