// sb_quantize: codes = round(x 2^shift Q / r), nearest or stochastic, for any dense layout of the tensor.
//
// Nearest rounding goes through memory in order. Stochastic rounding takes its 16 bits by LOGICAL row-major index:
//   order LINEAR       memory order is logical order; bits are drawn for a tile at a time
//   order TRANSPOSED   memory is (batch, pixels, channels), logic (batch, channels, pixels): channels_last, or x.T.
//                      Where pixels % 4 == 0, four pixels of a channel share a call; lanes run over channels.
// What is drawn lies in a tile of the L1 cache for as long as it takes to use it.
#include "quantize.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu_features.h"
#include "memory.h"
#include "parallel.h"

namespace sb {
namespace {

Op<QuantizeKernels> nearest_op{"quantize_nearest"}, stochastic_op{"quantize_sr"};

constexpr i64 kTile = 1024;      // elements for which bits are drawn at a time
constexpr i64 kBlock = 1 << 15;  // elements in a task
constexpr i64 kGrain = 1 << 14;  // elements that are worth a second thread
constexpr i64 kOneDraw = 61;     // pixels that one vector of calls covers wherever they start: 4 * 16 - 3
constexpr float kTop = 1 << 16;  // 2^FRACTION_BITS

// numerics.inverse_step
float inverse_step(float r, float top) { return std::isfinite(r) && r > 0 ? top / r : 0.0f; }

// numerics.power_of_two
float power_of_two(u8 exponent) {
    const u32 bits = (exponent + 127u) << 23;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}

// x * first * second is not what is wanted: inv = first * second is one number, rounded, before x meets it.
struct Factors {
    std::vector<float> first_values, second_values;
    Operand<float> first, second;
    bool both;

    Factors(const Factors&) = delete;  // the operands point into the values
    Factors(std::vector<float> a, Axis a_axis, std::vector<float> b, Axis b_axis)
        : first_values(std::move(a)), second_values(std::move(b)), first(first_values.data(), a_axis),
          second(second_values.data(), b_axis), both(b_axis.channels > 1) {}

    // piece(begin, length, inv) for runs that cover begin .. end
    template <class Piece>
    void pieces(i64 begin, i64 end, const Piece& piece) const {
        float buffer[kLanes], other[kLanes], product[kTile];
        while (begin < end) {
            const Axis::Position p = first.axis().position(begin);
            i64 n = std::min(end - begin, p.run);
            Lane<float> inv = first.lane(p.at, buffer);
            if (both) {
                const Axis::Position s = second.axis().position(begin);
                n = std::min(std::min(n, s.run), kTile);
                const Lane<float> by = second.lane(s.at, other);
                for (i64 i = 0; i < round_up<i64>(n, kLanes); ++i)
                    product[i] = i < n ? inv.p[inv.step * i] * by.p[by.step * i] : 0.0f;
                inv = {product, 1};
            }
            piece(begin, n, inv);
            begin += n;
        }
    }
};

struct Call {
    const QuantizeKernels& kernel;
    const Factors& factors;
    const float* x;
    i8* codes;
    float low, high;

    void nearest(i64 begin, i64 end) const {
        factors.pieces(begin, end, [&](i64 at, i64 n, Lane<float> inv) {
            kernel.nearest(x + at, inv, low, high, n, codes + at);
        });
    }
    void stochastic(i64 begin, i64 end, const u16* r) const {
        factors.pieces(begin, end, [&](i64 at, i64 n, Lane<float> inv) {
            kernel.stochastic(x + at, inv, low, high, r + (at - begin), n, codes + at);
        });
    }
};

void linear(const Call& call, u64 stream, i64 n, int threads) {
    parallel(threads, ceil_div(n, kBlock), [&](i64 task, int) {
        u16 r[kTile + kRandomSlack];
        const i64 stop = std::min((task + 1) * kBlock, n);
        for (i64 at = task * kBlock; at < stop; at += kTile) {  // a multiple of 4: whole calls
            const i64 end = std::min(at + kTile, stop);
            call.kernel.random_run(stream, static_cast<u64>(at / 4), ceil_div<i64>(end - at, 4), r);
            call.stochastic(at, end, r);
        }
    });
}

// Bits for `count` pixels from p on, of all channels: r[pixel][channel].
void draw_pixels(const Call& call, u64 stream, i64 image, i64 p, i64 count, i64 pixels, i64 channels, u16* r) {
    const i64 first = image * channels * pixels + p;  // logical index of channel 0
    if (pixels % 4 == 0) {
        for (i64 j = 0; j < count; j += 4)
            call.kernel.random_pixels(
                stream, static_cast<u64>((first + j) / 4), static_cast<u64>(pixels / 4), channels, r + j * channels);
        return;
    }
    u16 drawn[4 * kLanes + kRandomSlack];
    for (i64 c = 0; c < channels; ++c) {
        const i64 start = first + c * pixels;
        call.kernel.random_run(stream, static_cast<u64>(start / 4), ceil_div<i64>(start % 4 + count, 4), drawn);
        for (i64 j = 0; j < count; ++j) r[j * channels + c] = drawn[start % 4 + j];
    }
}

void transposed(const Call& call, u64 stream, i64 batch, i64 channels, i64 pixels, int threads) {
    const i64 whole = std::min(pixels, pixels % 4 == 0 ? round_up<i64>(ceil_div(kTile, channels), 4) : kOneDraw);
    const i64 tiles = ceil_div(pixels, whole);
    const i64 group = std::max<i64>(1, kBlock / (whole * channels));  // tiles in a task
    parallel(threads, ceil_div(batch * tiles, group), [&](i64 task, int) {
        std::vector<u16> r(static_cast<size_t>(whole * channels + kRandomSlack));
        const i64 stop = std::min((task + 1) * group, batch * tiles);
        for (i64 tile = task * group; tile < stop; ++tile) {
            const i64 image = tile / tiles, p = tile % tiles * whole, count = std::min(whole, pixels - p);
            draw_pixels(call, stream, image, p, count, pixels, channels, r.data());
            const i64 at = (image * pixels + p) * channels;
            call.stochastic(at, at + count * channels, r.data());
        }
    });
}

}  // namespace
}  // namespace sb

// x: n dense floats -> codes, in the same memory order.
//   r, shift   values for each index of an axis: element i takes value (i / inner) % channels; shift may be null
//   stream     null: half to even
//   pixels     1: memory order is logical order; otherwise TRANSPOSED with (batch, channels, pixels)
//   low, high  qmin and qmax
SB_EXPORT const char* sb_quantize(
    const float* x, sb::i64 n, const float* r, sb::i64 r_channels, sb::i64 r_inner, const sb::u8* shift,
    sb::i64 shift_channels, sb::i64 shift_inner, const sb::i64* stream, sb::i64 batch, sb::i64 channels, sb::i64 pixels,
    int low, int high, void* codes, int threads) {
    using namespace sb;
    const auto kernel = stream ? stochastic_op.best() : nearest_op.best();
    if (n == 0) return kernel.name;
    if (stream && pixels != 1 && n >= i64{1} << 34) return nullptr;  // random_pixels counts calls in 32 bits
    std::vector<float> inv(static_cast<size_t>(r_channels));
    for (i64 c = 0; c < r_channels; ++c) inv[c] = inverse_step(r[c], static_cast<float>(high) * kTop);
    std::vector<float> power(shift ? static_cast<size_t>(shift_channels) : 0);
    for (i64 c = 0; c < static_cast<i64>(power.size()); ++c) power[c] = power_of_two(shift[c]);

    Axis axis(r_channels, r_inner, n), other(1, n, n);
    if (shift) {
        const Axis by(shift_channels, shift_inner, n);
        if (r_channels == 1) {  // one range: its inverse goes into each power
            for (float& f : power) f *= inv[0];
            inv = std::move(power), axis = by;
        } else if (shift_channels == 1 || by == axis) {
            for (i64 c = 0; c < r_channels; ++c) inv[c] *= power[shift_channels == 1 ? 0 : c];
        } else {
            other = by;
        }
    }
    if (other.channels == 1) power.assign(1, 1.0f);
    const Factors factors(std::move(inv), axis, std::move(power), other);
    will_fill(codes, n);
    const Call call{*kernel.table, factors, x, static_cast<i8*>(codes), low * kTop, high * kTop};
    const int workers = useful_threads(threads, n, kGrain);
    if (!stream)
        parallel(workers, ceil_div(n, kBlock), [&](i64 task, int) {
            call.nearest(task * kBlock, std::min((task + 1) * kBlock, n));
        });
    else if (pixels == 1)
        linear(call, static_cast<u64>(*stream), n, workers);
    else
        transposed(call, static_cast<u64>(*stream), batch, channels, pixels, workers);
    return kernel.name;
}
