// Convolutions whose groups have a channel or two (depthwise): each plane on its own, in int32 lanes, without words.
//
// A product of words would multiply zeros here: it wants 4 source channels and 16 target channels in every group.
#include <algorithm>
#include <cstring>
#include <vector>

#include "conv.h"
#include "cpu_features.h"
#include "numerics.h"
#include "parallel.h"

namespace sb {
namespace {

Op<ProductKernels> output_op{"conv2d_planes"};
Op<ProductKernels> grad_input_op{"conv2d_planes_grad_input"};
Op<ProductKernels> grad_weight_op{"conv2d_planes_grad_weight"};

constexpr i64 kMaxTaps = 1 << 14;  // 2^14 products of 8-bit codes stay below 2^31

i32 value(const ConvCall::Operand& operand, const u8* code) {
    return operand.is_signed ? static_cast<i8>(*code) : static_cast<i32>(*code);
}

struct Plane {
    i64 n, channel, height, width;  // the codes
    i64 top, left;                  // the first row and column wanted, perhaps outside of them
    i64 rows, pitch;                // how many rows, and how far apart
};

// A plane of codes as int32, surrounded by zeros.
i32* pad_plane(const ConvCall::Operand& from, const Plane& plane, Slot slot) {
    i32* to = scratch<i32>(slot, plane.rows * plane.pitch);
    std::fill(to, to + plane.rows * plane.pitch, 0);
    const i64 x0 = std::max<i64>(0, plane.left), x1 = std::min(plane.width, plane.left + plane.pitch);
    for (i64 y = std::max<i64>(0, plane.top); y < std::min(plane.height, plane.top + plane.rows); ++y) {
        const u8* row = from.codes() + plane.n * from.stride[0] + plane.channel * from.stride[1] + y * from.stride[2];
        i32* line = to + (y - plane.top) * plane.pitch - plane.left;
        if (from.is_signed)
            for (i64 x = x0; x < x1; ++x) line[x] = static_cast<i8>(row[x * from.stride[3]]);
        else
            for (i64 x = x0; x < x1; ++x) line[x] = row[x * from.stride[3]];
    }
    return to;
}

void store_sum(const ConvCall& call, i64 at, i64 sum) {
    if (call.wide)
        reinterpret_cast<i64*>(call.out)[at] = sum;
    else
        reinterpret_cast<i32*>(call.out)[at] = static_cast<i32>(sum);
}

int left_shift(const ConvCall::Operand& operand, i64 at) {
    return operand.shift ? static_cast<int>(operand.max_shift) - operand.exponents()[at] : 0;
}

}  // namespace

const char* window_by_planes(const ConvCall& call, bool backward, int threads) {
    if (call.r * call.s > kMaxTaps) return nullptr;
    const auto kernel = (backward ? grad_input_op : output_op).best();
    const Window window(call, backward);
    const WindowAxis &rows = window.rows, &cols = window.cols;
    const i64 channels = window.targets * call.groups, plane = rows.dst * cols.dst, *ws = window.weight_stride;
    const i64 height = (rows.count() - 1) * rows.src_step + rows.high - rows.low + 1;
    // Sums lie as the source does, `pitch` apart, so that a tap is one pass over a whole plane; what falls between two
    // rows of sums is never read.
    const i64 wide = (cols.count() - 1) * cols.src_step + cols.high - cols.low + 1;
    const i64 width = round_up(wide, cols.src_step), pitch = rows.src_step * width / cols.src_step;
    ChannelMaxima maxima(call, channels, threads);
    parallel(threads, plane ? call.n * channels : 0, [&](i64 task, int worker) {
        const i64 n = task / channels, target = task % channels, group = target / window.targets;
        i64* total = scratch<i64>(Slot::sums, plane);
        i32* acc = scratch<i32>(Slot::extra, rows.count() * pitch + cols.count());
        std::fill(total, total + plane, 0);
        for (i64 j = 0; j < window.sources; ++j) {
            const i64 source = group * window.sources + j;
            const int shift = left_shift(call.a, source) + left_shift(call.b, group * window.shift_step_b + j);
            const Plane seen{n, source, rows.src, cols.src, rows.low, cols.low, height, width};
            const i32* x = pad_plane(call.a, seen, Slot::left);
            const u8* w = call.b.codes() + group * ws[0] + target % window.targets * ws[1] + j * ws[2];
            for (const Phase& pr : rows.phases)
                for (const Phase& pc : cols.phases) {
                    const i64 length = (pr.count - 1) * pitch + pc.count;
                    std::fill(acc, acc + length, 0);
                    for (const Phase::Tap& r : pr.taps)
                        for (const Phase::Tap& s : pc.taps)
                            kernel.table->axpy(acc, x + (r.offset - rows.low) * width + s.offset - cols.low,
                                               cols.src_step, value(call.b, w + r.weight * ws[3] + s.weight * ws[4]),
                                               length);
                    for (i64 i = 0; i < pr.count; ++i) {
                        i64* to = total + (pr.first + i * rows.step) * cols.dst + pc.first;
                        for (i64 q = 0; q < pc.count; ++q)
                            to[q * cols.step] += static_cast<i64>(acc[i * pitch + q]) << shift;
                    }
                }
        }
        const i64 step = call.channels_last ? channels : 1;
        const i64 first = call.channels_last ? n * plane * channels + target : (n * channels + target) * plane;
        if (call.sums_only()) {
            for (i64 i = 0; i < plane; ++i) store_sum(call, first + i * step, total[i]);
            return;
        }
        const float scale = call.scales()[n * call.scale_stride[0] + target * call.scale_stride[1]];
        const float* bias = reinterpret_cast<const float*>(call.bias);
        const FloatsOut out(call.at(first), call.half != 0);
        i32 most = 0;
        out.visit([&](auto* to) {
            for (i64 i = 0; i < plane; ++i) {
                const float product = static_cast<float>(total[i]) * scale, y = bias ? product + bias[target] : product;
                put(to + i * step, y);
                i32 bits;
                std::memcpy(&bits, &y, sizeof bits);
                most = std::max(most, bits & 0x7FFFFFFF);
            }
        });
        if (i32* own = maxima.of(worker)) own[target] = std::max(own[target], most);
    });
    maxima.write(channels, [](i64 c) { return c; });
    return kernel.name;
}

const char* grad_weight_by_planes(const ConvCall& call, int threads) {
    const auto kernel = grad_weight_op.best();
    const i64 inputs = call.c / call.groups, outputs = call.o / call.groups, taps = call.r * call.s;
    const i64 height = (call.p - 1) * call.stride[0] + (call.r - 1) * call.dilation[0] + 1;
    const i64 wide = (call.q - 1) * call.stride[1] + (call.s - 1) * call.dilation[1] + 1;
    const i64 width = round_up(wide, call.stride[1]), pitch = call.stride[0] * width / call.stride[1];
    const i64 length = (call.p - 1) * pitch + call.q;
    parallel(threads, taps ? call.o * inputs : 0, [&](i64 task, int) {
        const i64 o = task / inputs, c = task % inputs, source = o / outputs * inputs + c;
        std::vector<i64> total(static_cast<size_t>(taps), 0);
        for (i64 n = 0; n < (call.p * call.q > 0 ? call.n : 0); ++n) {
            const int shift = left_shift(call.a, n) + left_shift(call.b, n);
            const i32* x = pad_plane(
                call.b, {n, source, call.h, call.w, -call.padding[0], -call.padding[1], height, width}, Slot::left);
            // g lies as x does, with zeros between its rows: a tap is one product of two long vectors.
            const i32* g = pad_plane(call.a, {n, o, call.p, call.q, 0, 0, call.p, pitch}, Slot::extra);
            for (i64 r = 0; r < call.r; ++r)
                for (i64 s = 0; s < call.s; ++s)
                    total[r * call.s + s] +=
                        kernel.table->dot(g, x + r * call.dilation[0] * width + s * call.dilation[1], call.stride[1],
                                          length)
                        << shift;
        }
        const i64 first = (o * inputs + c) * taps;
        if (call.sums_only()) {
            for (i64 tap = 0; tap < taps; ++tap) store_sum(call, first + tap, total[tap]);
            return;
        }
        const float scale = call.scales()[o * call.scale_stride[0] + c * call.scale_stride[1]];
        float* out = reinterpret_cast<float*>(call.at(first));
        for (i64 tap = 0; tap < taps; ++tap) out[tap] = static_cast<float>(total[tap]) * scale;
    });
    return kernel.name;
}

}  // namespace sb
