// See conv.h.
#include "conv.h"

#include <algorithm>

#include "numerics.h"

namespace sb {
namespace {

void bounds(WindowAxis& axis) {
    bool any = false;
    axis.low = axis.high = 0;
    for (const Phase& phase : axis.phases)
        for (const Phase::Tap& tap : phase.taps) {
            axis.low = any ? std::min(axis.low, tap.offset) : tap.offset;
            axis.high = any ? std::max(axis.high, tap.offset) : tap.offset;
            any = true;
        }
}

constexpr i64 kRowBytes = 128 << 10;            // codes of all channels in a row of regrouped(), at most
constexpr i64 kMostColumns = 512, kLeast = 16;  // and its pixels
constexpr i64 kRowsForThread = 4;

// The greatest divisor of `pixels`, at most `most`, a multiple of 4 if there is one; 1 if nothing else.
i64 row_length(i64 pixels, i64 most) {
    const i64 unit = pixels % 4 == 0 && most >= 4 ? 4 : 1;
    i64 best = 1;
    for (i64 w = unit; w <= most; w += unit)
        if (pixels % w == 0) best = w;
    return best;
}

}  // namespace

WindowAxis WindowAxis::output(i64 src, i64 dst, i64 taps, i64 stride, i64 padding, i64 dilation) {
    WindowAxis axis{src, dst, stride, 1, 0, 0, {{0, dst, {}}}};
    for (i64 r = 0; r < taps; ++r) axis.phases[0].taps.push_back({r, r * dilation - padding});
    bounds(axis);
    return axis;
}

// dx[h] = sum of g[p] w[r] over p * stride + r * dilation - padding = h: for each h mod stride its own taps.
WindowAxis WindowAxis::grad_input(i64 src, i64 dst, i64 taps, i64 stride, i64 padding, i64 dilation) {
    WindowAxis axis{src, dst, 1, stride, 0, 0, {}};
    for (i64 f = 0; f < std::min(stride, dst); ++f) {
        Phase phase{f, ceil_div(dst - f, stride), {}};
        for (i64 r = taps; r-- > 0;) {  // by rising offset, as in output()
            const i64 at = f + padding - r * dilation;
            if (at % stride == 0) phase.taps.push_back({r, at / stride});
        }
        axis.phases.push_back(phase);
    }
    bounds(axis);
    return axis;
}

ConvCall regrouped(ConvCall c, Role role, int threads) {
    const bool strided = c.stride[0] != 1 || c.stride[1] != 1, both = role == Role::grad_weight;
    if (c.r != 1 || c.s != 1 || c.padding[0] || c.padding[1] || c.n * c.p * c.q == 0 || by_planes(c)) return c;
    if (strided) {
        if (role == Role::grad_input) return c;  // the pixels between are zeros, and have to be written
        i64* stride = (both ? c.b : c.a).stride;
        stride[2] *= c.stride[0], stride[3] *= c.stride[1];
        c.h = c.p, c.w = c.q, c.stride[0] = c.stride[1] = 1;
    }
    if (!rows_touch(c.a, c.h, c.w) || (both && !rows_touch(c.b, c.h, c.w))) return c;
    bool images = images_touch(c.a, c.n, c.h, c.w);
    if (both)
        images = images && images_touch(c.b, c.n, c.h, c.w) && !c.a.shift && !c.b.shift;
    else
        images = images && c.channels_last && !c.scale_stride[0];
    const i64 pixels = c.h * c.w * (images ? c.n : 1);
    const i64 share = std::max(kLeast, pixels / (kRowsForThread * threads));
    const i64 fit = std::clamp(kRowBytes / (c.c + c.o), kLeast, kMostColumns);
    const i64 w = row_length(pixels, std::min(share, fit));
    if (w < std::min(kLeast, c.w)) return c;
    if (images) c.n = 1;
    c.w = c.q = w;
    c.h = c.p = pixels / w;
    for (i64* stride : {c.a.stride, c.b.stride}) {
        stride[0] = images ? pixels * stride[3] : stride[0];
        stride[2] = w * stride[3];
        if (!both) break;  // the other is the weight
    }
    return c;
}

Window::Window(const ConvCall& c, bool backward) {
    const auto make = backward ? WindowAxis::grad_input : WindowAxis::output;
    rows = make(backward ? c.p : c.h, backward ? c.h : c.p, c.r, c.stride[0], c.padding[0], c.dilation[0]);
    cols = make(backward ? c.q : c.w, backward ? c.w : c.q, c.s, c.stride[1], c.padding[1], c.dilation[1]);
    const i64 inputs = c.c / c.groups, outputs = c.o / c.groups, *w = c.b.stride;
    sources = backward ? outputs : inputs;
    targets = backward ? inputs : outputs;
    const i64 all[5] = {outputs * w[0], backward ? w[1] : w[0], backward ? w[0] : w[1], w[2], w[3]};
    std::copy(all, all + 5, weight_stride);
    shift_step_b = backward ? outputs : 0;
}

std::vector<int> Window::left(const ConvCall& c, i64 group) const {
    const u8 *ea = c.a.exponents(), *eb = c.b.exponents();
    return left_shifts(sources, ea ? ea + group * sources : nullptr, static_cast<int>(c.a.max_shift),
                       eb ? eb + group * shift_step_b : nullptr, static_cast<int>(c.b.max_shift));
}

ChannelMaxima::ChannelMaxima(const ConvCall& call, i64 slots, int threads)
    : ranges_(reinterpret_cast<float*>(call.amax)), half_(call.half != 0),
      stride_(round_up<i64>(slots, 16)) {  // a cache line each
    if (ranges_) maxima_.assign(static_cast<size_t>(stride_ * threads), 0);
}

void ChannelMaxima::write_one(i64 channel, i64 slot) const {
    i32 most = 0;
    for (size_t at = static_cast<size_t>(slot); at < maxima_.size(); at += static_cast<size_t>(stride_))
        most = std::max(most, maxima_[at]);
    ranges_[channel] = range_from_bits(kept_bits(most, half_));
}

bool by_planes(const ConvCall& c) { return c.groups > 1 && c.c / c.groups <= 2 && c.o / c.groups <= 2; }

}  // namespace sb
