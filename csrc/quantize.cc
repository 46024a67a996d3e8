// sb_quantize: codes = round(x 2^shift Q / r), nearest or stochastic, for any dense layout of the tensor.
//
// Which bits an element takes: draw.h.
#include "quantize.h"

#include <utility>
#include <vector>

#include "cpu_features.h"
#include "draw.h"
#include "memory.h"
#include "numerics.h"

namespace sb {
namespace {

Op<QuantizeKernels> nearest_op{"quantize_nearest"}, stochastic_op{"quantize_sr"};

constexpr i64 kBlock = 1 << 15;  // elements in a tile to which no random bits belong
constexpr i64 kProducts = 1024;  // elements whose own factor is multiplied out at a time
constexpr i64 kGrain = 1 << 14;  // elements that are worth a second thread

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
        alignas(64) float buffer[kLanes], other[kLanes], product[kProducts];
        while (begin < end) {
            const Axis::Position p = first.axis().position(begin);
            i64 n = std::min(end - begin, p.run);
            Lane<float> inv = first.lane(p.at, buffer);
            if (both) {
                const Axis::Position s = second.axis().position(begin);
                n = std::min(std::min(n, s.run), kProducts);
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
    Floats x;
    i8* codes;
    float low, high;

    void operator()(i64 begin, i64 end, const u16* r, int) const {
        factors.pieces(begin, end, [&](i64 at, i64 n, Lane<float> inv) {
            if (r)
                kernel.stochastic(x + at, inv, low, high, r + (at - begin), n, codes + at);
            else
                kernel.nearest(x + at, inv, low, high, n, codes + at);
        });
    }

    void draw(i64 begin, i64 n, u64 stream) const {
        factors.pieces(begin, begin + n, [&](i64 at, i64 run, Lane<float> inv) {
            kernel.drawn(x + at, inv, low, high, stream, static_cast<u64>(at) / 4, run, codes + at);
        });
    }
};

}  // namespace
}  // namespace sb

// x: n dense floats (half: bfloat16) -> codes, in the same memory order.
//   r, shift   values for each index of an axis: element i takes value (i / inner) % channels; shift may be null
//   stream     null: half to even
//   pixels     1: memory order is logical order; otherwise TRANSPOSED with (batch, channels, pixels)
//   low, high  qmin and qmax
SB_EXPORT const char* sb_quantize(
    const void* x, int half, sb::i64 n, const float* r, sb::i64 r_channels, sb::i64 r_inner, const sb::u8* shift,
    sb::i64 shift_channels, sb::i64 shift_inner, const sb::i64* stream, sb::i64 batch, sb::i64 channels, sb::i64 pixels,
    int low, int high, void* codes, int threads) {
    using namespace sb;
    const auto kernel = stream ? stochastic_op.best() : nearest_op.best();
    if (n == 0) return kernel.name;
    if (stream && !Draws::covers(n, {batch, channels, pixels})) return nullptr;
    std::vector<float> inv(static_cast<size_t>(r_channels));
    for (i64 c = 0; c < r_channels; ++c) inv[c] = inverse_step(r[c], static_cast<float>(high) * kOne);
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
    const bool one_factor = axis.channels == 1 && other.channels == 1;
    const Factors factors(std::move(inv), axis, std::move(power), other);
    will_fill(codes, n);
    const Call call{*kernel.table, factors, Floats(x, half), static_cast<i8*>(codes), low * kOne, high * kOne};
    const Order order{batch, channels, pixels};
    const int workers = useful_threads(threads, n, kGrain);
    if (stream && order.linear() && one_factor) {  // drawn where they are used
        parallel(workers, ceil_div(n, kBlock), [&](i64 task, int) {
            const i64 at = task * kBlock;
            call.draw(at, std::min(kBlock, n - at), static_cast<u64>(*stream));
        });
        return kernel.name;
    }
    const Draws draws(*kernel.table, stream, n, order, stream ? Draws::kTile : kBlock);
    draws.each(workers, call);
    return kernel.name;
}
