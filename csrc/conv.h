// What the three products of a convolution share.    x (N, C, H, W), w (O, C/groups, R, S), g (N, O, P, Q)
#pragma once

#include <vector>

#include "gemm_plan.h"

namespace sb {

// All 64-bit, so that Python fills it as one array; pointers are addresses, 0 for none. See _cpu_products.py.
struct ConvCall {
    struct Operand {
        i64 data, stride[4], shift, bits, is_signed, max_shift;  // strides in elements, one byte each
        Format format() const { return {bits, is_signed}; }
        const u8* codes() const { return reinterpret_cast<const u8*>(data); }
        const u8* exponents() const { return reinterpret_cast<const u8*>(shift); }
    } a, b;  // x, w of the output; g, w of grad_input; g, x of grad_weight
    i64 scale, scale_stride[2], bias;
    i64 out, channels_last;
    i64 n, c, h, w, o, p, q, r, s;
    i64 stride[2], padding[2], dilation[2], groups;
    i64 wide;  // may a sum leave int32?
    i64 half;  // are the floats of the output bfloat16?
    i64 amax;  // float[channels of the output]: the range of each is wanted as well; or 0

    const float* scales() const { return reinterpret_cast<const float*>(scale); }
    bool sums_only() const { return scale == 0; }  // out gets the sums themselves: int32, int64 when wide
    // Does an output of `bytes`, of which a kernel writes `run` side by side, go past the caches (Tile::stream)? Where
    // they would not keep it until it is read, and lines are written whole.
    bool streams(const ProductKernels& k, i64 run, i64 bytes) const {
        return k.streams() && !sums_only() && !half && bytes >= kFarBytes && run % kLine == 0 && out % kLine == 0;
    }
    static constexpr i64 kFarBytes = 2 << 20;
    i64 element() const { return sums_only() ? (wide ? 8 : 4) : half ? 2 : 4; }  // bytes
    // Element i of the output.
    u8* at(i64 i) const { return reinterpret_cast<u8*>(out) + i * element(); }
};

// The convolution or its input gradient, seen as one thing: destination channels from a window over source channels.
// Along one dimension, destination index f + step * i of a phase takes source index src_step * i + offset for each tap.
struct Phase {
    struct Tap {
        i64 weight, offset;
    };
    i64 first, count;
    std::vector<Tap> taps;
};

struct WindowAxis {
    i64 src, dst;        // sizes
    i64 src_step, step;  // per i
    i64 low, high;       // smallest and largest offset of any tap
    std::vector<Phase> phases;
    i64 count() const { return ceil_div(dst, step); }  // values of i in the longest phase

    static WindowAxis output(i64 src, i64 dst, i64 taps, i64 stride, i64 padding, i64 dilation);
    static WindowAxis grad_input(i64 src, i64 dst, i64 taps, i64 stride, i64 padding, i64 dilation);
};

struct Window {
    Window(const ConvCall& call, bool backward);

    WindowAxis rows, cols;
    i64 sources, targets;  // channels in a group
    // weight of (group, target, source, r, s) at b.data + group * [0] + target * [1] + source * [2] + r * [3] + s * [4]
    i64 weight_stride[5];
    i64 shift_step_b;  // the weight's exponents of group i begin at i * this
    std::vector<int> left(const ConvCall& call, i64 group) const;
};

// The range of each output channel, found while it is stored: maxima for each worker, merged at the end.
class ChannelMaxima {
public:
    ChannelMaxima(const ConvCall& call, i64 slots, int threads);
    i32* of(int worker) { return maxima_.empty() ? nullptr : maxima_.data() + worker * stride_; }
    // channel c has slot(c)
    template <class SlotOf>
    void write(i64 channels, const SlotOf& slot) const {
        for (i64 c = 0; !maxima_.empty() && c < channels; ++c) write_one(c, slot(c));
    }

private:
    void write_one(i64 channel, i64 slot) const;

    float* ranges_;
    bool half_;
    i64 stride_;
    Lines<i32> maxima_;
};

// The same product of a kernel of one pixel (1x1, no padding) seen as a matrix product over pixels: those that a stride
// skips are gone, and where rows follow each other in memory, and images, they are cut anew into rows of a length that
// suits the kernels. Any other call is returned as it is.
enum class Role { output, grad_input, grad_weight };
ConvCall regrouped(ConvCall call, Role role, int threads);

// Do rows of pixels follow each other as pixels do, and images?  n images of h x w
inline bool rows_touch(const ConvCall::Operand& a, i64 h, i64 w) { return h == 1 || a.stride[2] == w * a.stride[3]; }
inline bool images_touch(const ConvCall::Operand& a, i64 n, i64 h, i64 w) {
    return n == 1 || a.stride[0] == h * w * a.stride[3];
}

// grad_weight of few pixels and many channels (conv_grad_weight_few.cc). Returns nullptr for any other.
const char* grad_weight_of_few_pixels(const ConvCall& call, int threads);

// 3x3 convolutions of few bits (conv_winograd.cc). Returns nullptr for any other.
const char* by_winograd(const ConvCall& call, bool backward, int threads);

// Groups of a channel or two: each plane on its own, without words. Returns nullptr where a kernel is too large for
// int32.
bool by_planes(const ConvCall& call);
const char* window_by_planes(const ConvCall& call, bool backward, int threads);
const char* grad_weight_by_planes(const ConvCall& call, int threads);

}  // namespace sb
