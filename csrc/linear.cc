// sb_linear_forward and sb_linear_backward: a linear layer in one call each way (ops/linear.py): codes of its operands,
// in memory that the next call uses again, and its products by sb_gemm.
#include <algorithm>
#include <limits>
#include <vector>

#include "exports.h"
#include "gemm_call.h"
#include "memory.h"
#include "numerics.h"
#include "parallel.h"

namespace sb {
namespace {

// A call of sb_gemm as Python fills it in, all but the codes and scales that are made here.
GemmCall given(const void* call) { return *static_cast<const GemmCall*>(call); }

template <class T>
i64 address(const T* p) { return reinterpret_cast<i64>(p); }

struct Tokens {
    float step;  // of their codes
    const char* kernel;
};

// codes: x's, whose largest magnitude is `range`, with an exponent up to `top` for each `row` elements inside of them;
// stream: nullptr rounds to nearest.
Tokens tokens_within(
    float range, Floats x, i64 n, i64 row, float clip, const i64* stream, int bits, bool with_sign, int top,
    i8* codes, int threads) {
    range = clipped(range, clip);
    const char* kernel =
        sb_quantize_tokens(x.p, x.half, n / row, row, &range, stream, 1, n, 1, bits, with_sign, top, codes, threads);
    const int high = (1 << (bits - with_sign)) - 1;
    return {range / static_cast<float>(high) / power_of_two(static_cast<u8>(top)), kernel};
}

Tokens tokens_of(
    Floats x, i64 n, i64 row, float clip, const i64* stream, int bits, bool with_sign, int top, i8* codes,
    int threads) {
    float range;
    sb_amax(x.p, x.half, 1, 1, n, &range, threads);
    return tokens_within(range, x, n, row, clip, stream, bits, with_sign, top, codes, threads);
}

// Is `step` times the scale of B in no need of rounding, with 2^-top and without?
bool exact(float step, int top, const void* product) {
    const float without = step * *reinterpret_cast<const float*>(given(product).b_scale);
    return without / power_of_two(static_cast<u8>(top)) >= std::numeric_limits<float>::min() &&
           without <= std::numeric_limits<float>::max();
}

// to[i][j] = x[i][j] 2^shift[j]
void shifted(Floats x, i64 rows, i64 columns, const u8* shift, float* to, int threads) {
    std::vector<float> factor(static_cast<size_t>(columns));
    for (size_t j = 0; j < factor.size(); ++j) factor[j] = power_of_two(shift[j]);
    x.visit([&](auto* from) {
        parallel(threads, rows, [&](i64 i, int) {
            for (i64 j = i * columns; j < (i + 1) * columns; ++j)
                to[j] = value(from[j]) * factor[static_cast<size_t>(j - i * columns)];
        });
    });
}

}  // namespace
}  // namespace sb

// x, w: dense floats (half: bfloat16) -> their codes, packed, and scales; and what `product` multiplies: x by w
// transposed. Exponents up to x_top belong to x's rows (tokens; x_places as sb_pack_tokens gives them), up to w_top to
// w's outputs or, with w_block, to each w_block elements of w: then w_exponents are places as well.
SB_EXPORT const char* sb_linear_forward(
    const void* x, int x_half, sb::i64 x_n, float x_clip, int x_bits, int x_low, int x_high, int x_top, const void* w,
    int w_half, sb::i64 w_n, float w_clip, int w_bits, int w_low, int w_high, sb::i64 outputs, int w_top,
    sb::i64 w_block, const void* product, sb::u8* x_packed, float* x_scale, sb::u8* x_places, sb::u8* w_packed,
    float* w_scale, sb::u8* w_exponents, int threads) {
    using namespace sb;
    const Scratch x_codes(x_n), w_codes(w_n);
    const i64 inputs = w_n / outputs;
    u8 *qx = x_codes.as<u8>(), *qw = w_codes.as<u8>();
    if (x_top) {
        const Floats floats(x, x_half);
        *x_scale =
            tokens_of(floats, x_n, inputs, x_clip, nullptr, x_bits, x_low < 0, x_top, x_codes.as<i8>(), threads).step;
        sb_pack_tokens(qx, x_n / inputs, inputs, x_bits, x_top, x_packed, x_places, threads);
    } else {
        sb_absmax_codes(x, x_half, x_n, x_clip, nullptr, 1, x_n, 1, x_low, x_high, qx, x_scale, threads);
        sb_pack_codes(qx, x_n, x_bits, x_packed, threads);
    }
    std::vector<float> steps(static_cast<size_t>(outputs));
    if (w_block) {
        const Floats floats(w, w_half);
        *w_scale =
            tokens_of(floats, w_n, w_block, w_clip, nullptr, w_bits, w_low < 0, w_top, w_codes.as<i8>(), threads).step;
        std::fill(steps.begin(), steps.end(), *w_scale);
        sb_pack_tokens(qw, w_n / w_block, w_block, w_bits, w_top, w_packed, w_exponents, threads);
    } else {
        sb_shift_codes(
            w, w_half, w_n, outputs, inputs, w_top, w_clip, nullptr, 1, w_n, 1, w_low, w_high, qw, w_scale, w_exponents,
            threads);
        for (size_t i = 0; i < steps.size(); ++i) steps[i] = *w_scale / power_of_two(w_exponents[i]);
        sb_pack_codes(qw, w_n, w_bits, w_packed, threads);
    }
    GemmCall call = given(product);
    call.a.data = address(qx), call.b.data = address(qw);
    call.a_scale = address(x_scale), call.b_scale = address(steps.data());
    return sb_gemm(&call, threads);
}

// data: (rows, outputs) dense floats (half: bfloat16), the gradient g -> grad_input = g w, grad_weight = g transposed
// by x, and ones by g; each product may be null. Exponents up to `top` belong to rows (tokens) or to outputs; w's, up
// to w_top, are in grad_input's call. With tokens, outputs have exponents up to channel_top beside them, as
// sb_shift_exponents gives them. Where all are 0, grad_input goes without them, and with `wide_without` in place of its
// `wide`. x_places, w_places: of packed codes with exponents inside, which are unpacked here; nullptr: the call has the
// operand.
SB_EXPORT const char* sb_linear_backward(
    const void* data, int half, sb::i64 rows, sb::i64 outputs, int tokens, int top, int channel_top, int apart,
    float clip, const sb::i64* stream, int bits, sb::i64 inputs, const sb::u8* x_packed, const sb::u8* x_places,
    int x_bits, int x_signed, int x_top, const sb::u8* w_packed, const sb::u8* w_places, int w_bits, int w_signed,
    int w_top, sb::i64 w_block, const void* grad_input, int wide_without, const void* grad_weight, const void* grad_bias,
    int threads) {
    using namespace sb;
    const Floats g(data, half);
    const i64 n = rows * outputs;
    const Scratch codes(n);
    const i8* q = codes.as<i8>();
    std::vector<u8> shift(static_cast<size_t>(outputs));
    float step;
    const char* kernel;
    bool without = false;  // exponents of outputs, in grad_input
    if (tokens) {  // theirs is in the codes
        std::vector<float> ranges(static_cast<size_t>(channel_top ? outputs : 1));
        const i64 outer = channel_top ? rows : 1, channels = channel_top ? outputs : 1;
        sb_amax(data, half, outer, channels, channel_top ? 1 : n, ranges.data(), threads);
        float range = ranges[0];
        if (channel_top) sb_shift_exponents(ranges.data(), outputs, channel_top, apart, &range, shift.data(), 1);
        const bool far = std::any_of(shift.begin(), shift.end(), [](u8 e) { return e > 0; });
        const Scratch nearer(far ? n * static_cast<i64>(sizeof(float)) : 0);
        if (far) shifted(g, rows, outputs, shift.data(), nearer.as<float>(), threads);
        const Tokens found = tokens_within(
            range, far ? Floats(nearer.as<float>()) : g, n, outputs, clip, stream, bits, true, top, codes.as<i8>(),
            threads);
        step = found.step, kernel = found.kernel, top = channel_top;
        without = !far && (!grad_input || exact(step, top + w_top, grad_input));
        if (without) top = 0;
    } else {
        const int high = (1 << (bits - 1)) - 1;
        kernel = sb_shift_codes(
            data, half, n, outputs, 1, top, clip, stream, 1, n, 1, -high, high, codes.as<i8>(), &step, shift.data(),
            threads);
    }
    std::vector<float> steps(static_cast<size_t>(outputs), step);  // of each output
    for (size_t i = 0; i < steps.size(); ++i) steps[i] /= power_of_two(shift[i]);
    const float least = step / power_of_two(static_cast<u8>(top + (w_places ? 0 : w_top))), one = 1.0f;
    if (grad_input) {
        GemmCall call = given(grad_input);
        const Scratch w_codes(w_places ? outputs * inputs : 0);
        if (w_places) {
            sb_unpack_tokens(
                w_packed, w_places, outputs * inputs / w_block, w_block, w_bits, w_signed, w_top, w_codes.as<u8>(),
                threads);
            call.b.data = address(w_codes.as<u8>());
        }
        call.a.data = address(q), call.a_scale = address(&least);
        if (top) call.a.shift = address(shift.data());
        if (without) call.a.max_shift = 0, call.wide = wide_without;
        kernel = sb_gemm(&call, threads);
    }
    if (grad_weight) {
        GemmCall call = given(grad_weight);
        const Scratch x_codes(x_places ? rows * inputs : 0);
        if (x_places) {
            sb_unpack_tokens(x_packed, x_places, rows, inputs, x_bits, x_signed, x_top, x_codes.as<u8>(), threads);
            call.b.data = address(x_codes.as<u8>());
        }
        call.a.data = address(q), call.a_scale = address(steps.data());
        kernel = sb_gemm(&call, threads);
    }
    if (grad_bias) {
        GemmCall call = given(grad_bias);
        call.b.data = address(q), call.b_scale = address(steps.data());
        call.a_scale = address(&one);
        kernel = sb_gemm(&call, threads);
    }
    return kernel;
}
