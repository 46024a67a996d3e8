// Convolutions whose groups have a channel or two (depthwise): each plane on its own, in int32 lanes, without words.
//
// A product of words would multiply zeros here: it wants 4 source channels and 16 target channels in every group.
#include <algorithm>
#include <vector>

#include "conv.h"
#include "cpu_features.h"
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

// A plane of codes as int32, surrounded by zeros: rows [top, top + height), columns [left, left + width) of it.
i32* pad_plane(const ConvCall::Operand& from, i64 n, i64 channel, i64 h, i64 w, i64 top, i64 height, i64 left,
               i64 width, Slot slot) {
    i32* to = scratch<i32>(slot, height * width);
    std::fill(to, to + height * width, 0);
    const u8* data = from.codes() + n * from.stride[0] + channel * from.stride[1];
    for (i64 y = std::max<i64>(0, top); y < std::min(h, top + height); ++y)
        for (i64 x = std::max<i64>(0, left); x < std::min(w, left + width); ++x)
            to[(y - top) * width + x - left] = value(from, data + y * from.stride[2] + x * from.stride[3]);
    return to;
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
    const i64 width = (cols.count() - 1) * cols.src_step + cols.high - cols.low + 1;
    parallel(threads, plane ? call.n * channels : 0, [&](i64 task, int) {
        const i64 n = task / channels, target = task % channels, group = target / window.targets;
        i64* total = scratch<i64>(Slot::sums, plane);
        i32* acc = scratch<i32>(Slot::extra, cols.count());
        std::fill(total, total + plane, 0);
        for (i64 j = 0; j < window.sources; ++j) {
            const i64 source = group * window.sources + j;
            const int shift = left_shift(call.a, source) + left_shift(call.b, group * window.shift_step_b + j);
            const i32* x =
                pad_plane(call.a, n, source, rows.src, cols.src, rows.low, height, cols.low, width, Slot::left);
            const u8* w = call.b.codes() + group * ws[0] + target % window.targets * ws[1] + j * ws[2];
            for (const Phase& pr : rows.phases)
                for (const Phase& pc : cols.phases)
                    for (i64 i = 0; i < pr.count; ++i) {
                        std::fill(acc, acc + pc.count, 0);
                        for (const Phase::Tap& r : pr.taps)
                            for (const Phase::Tap& s : pc.taps)
                                kernel.table->axpy(
                                    acc, x + (i * rows.src_step + r.offset - rows.low) * width + s.offset - cols.low,
                                    cols.src_step, value(call.b, w + r.weight * ws[3] + s.weight * ws[4]), pc.count);
                        i64* to = total + (pr.first + i * rows.step) * cols.dst + pc.first;
                        for (i64 q = 0; q < pc.count; ++q) to[q * cols.step] += static_cast<i64>(acc[q]) << shift;
                    }
        }
        const float scale = call.scales()[n * call.scale_stride[0] + target * call.scale_stride[1]];
        const float* bias = reinterpret_cast<const float*>(call.bias);
        float* out =
            call.floats() + (call.channels_last ? n * plane * channels + target : (n * channels + target) * plane);
        const i64 step = call.channels_last ? channels : 1;
        for (i64 i = 0; i < plane; ++i) {
            const float y = static_cast<float>(total[i]) * scale;
            out[i * step] = bias ? y + bias[target] : y;
        }
    });
    return kernel.name;
}

const char* grad_weight_by_planes(const ConvCall& call, int threads) {
    const auto kernel = grad_weight_op.best();
    const i64 inputs = call.c / call.groups, outputs = call.o / call.groups, taps = call.r * call.s;
    const i64 height = call.p == 0 ? 0 : (call.p - 1) * call.stride[0] + (call.r - 1) * call.dilation[0] + 1;
    const i64 width = call.q == 0 ? 0 : (call.q - 1) * call.stride[1] + (call.s - 1) * call.dilation[1] + 1;
    parallel(threads, taps ? call.o * inputs : 0, [&](i64 task, int) {
        const i64 o = task / inputs, c = task % inputs;
        std::vector<i64> total(static_cast<size_t>(taps), 0);
        for (i64 n = 0; n < call.n; ++n) {
            const int shift = left_shift(call.a, n) + left_shift(call.b, n);
            const i64 source = o / outputs * inputs + c;
            const i32* x = pad_plane(call.b, n, source, call.h, call.w, -call.padding[0], height, -call.padding[1],
                                     width, Slot::left);
            const i32* g = pad_plane(call.a, n, o, call.p, call.q, 0, call.p, 0, call.q, Slot::extra);
            for (i64 r = 0; r < call.r; ++r)
                for (i64 s = 0; s < call.s; ++s) {
                    i64 sum = 0;
                    for (i64 p = 0; p < call.p; ++p)
                        sum += kernel.table->dot(
                            g + p * call.q,
                            x + (p * call.stride[0] + r * call.dilation[0]) * width + s * call.dilation[1],
                            call.stride[1], call.q);
                    total[r * call.s + s] += sum << shift;
                }
        }
        const float scale = call.scales()[o * call.scale_stride[0] + c * call.scale_stride[1]];
        for (i64 tap = 0; tap < taps; ++tap)
            call.floats()[(o * inputs + c) * taps + tap] = static_cast<float>(total[tap]) * scale;
    });
    return kernel.name;
}

}  // namespace sb
